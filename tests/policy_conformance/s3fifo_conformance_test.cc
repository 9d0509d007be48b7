#include "gtest/gtest.h"
#include "kvcache/eviction/s3fifo/s3fifo.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(S3Fifo, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"s3fifo", CreateS3FifoPolicy}));

}  // namespace kvcache
