#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(
    Accounting, BackendConformanceTest,
    testing::Values(BackendUnderTest{"accounting",
                                     [](size_t capacity_bytes) {
                                       return CreateAccountingBackend(
                                           {.capacity_bytes = capacity_bytes});
                                     }},
                    BackendUnderTest{"accounting in pages", [](size_t capacity_bytes) {
                                       return CreateAccountingBackend(
                                           {.capacity_bytes = capacity_bytes, .alignment = 4096});
                                     }}));

}  // namespace kvcache
