#include "kvcache/backends/host_memory/available_memory.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "gtest/gtest.h"

namespace kvcache {
namespace {

// A folder with files of its own in the place of /proc and /sys.
class AvailableMemoryTest : public testing::Test {
 protected:
  AvailableMemoryTest()
      : root_(testing::TempDir() + "/" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
  }
  ~AvailableMemoryTest() override { std::filesystem::remove_all(root_); }

  void Put(const std::string& path, const std::string& contents) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << contents;
  }

  AvailableMemory Read(std::optional<int> numa_node = std::nullopt) const {
    return ReadAvailableMemory(numa_node, root_);
  }

 private:
  const std::string root_;
};

TEST_F(AvailableMemoryTest, WithoutFilesThereIsNoLimit) {
  EXPECT_EQ(Read().bytes, std::numeric_limits<size_t>::max());
  EXPECT_EQ(Read().limit, "no limit");
}

TEST_F(AvailableMemoryTest, TheSystemsOwnEstimateIsTaken) {
  Put("/proc/meminfo",
      "MemTotal:       24684092 kB\nMemFree:        24234576 kB\nMemAvailable:   24172136 kB\n");
  EXPECT_EQ(Read().bytes, size_t{24172136} * 1024);
  EXPECT_EQ(Read().limit, "MemAvailable in /proc/meminfo");
}

TEST_F(AvailableMemoryTest, ANodeHasWhatIsFreeThereAndWhatItCanDrop) {
  Put("/proc/meminfo", "MemAvailable:   9000 kB\n");
  Put("/sys/devices/system/node/node1/meminfo",
      "Node 1 MemTotal:       8000 kB\nNode 1 MemFree:        3000 kB\n"
      "Node 1 Inactive:       2000 kB\nNode 1 Inactive(file):  500 kB\n");
  EXPECT_EQ(Read().bytes, 9000u * 1024);
  EXPECT_EQ(Read(0).bytes, 9000u * 1024);
  EXPECT_EQ(Read(1).bytes, 3500u * 1024);
  EXPECT_EQ(Read(1).limit, "MemFree and Inactive(file) in /sys/devices/system/node/node1/meminfo");
  Put("/proc/meminfo", "MemAvailable:   3000 kB\n");
  EXPECT_EQ(Read(1).limit, "MemAvailable in /proc/meminfo");
}

TEST_F(AvailableMemoryTest, WhatMakesNoSenseLimitsNothing) {
  for (const std::string line :
       {"MemAvailable:", "MemAvailable: ", "MemAvailable: kB", "MemAvailable: -1 kB",
        "MemAvailable: 12", "MemAvailable: 12 MB", "MemAvailable: 1 2 kB", "MemAvailableX: 12 kB",
        "MemAvailable: 99999999999999999999999 kB", "MemAvailable: 18446744073709551615 kB"}) {
    Put("/proc/meminfo", line + "\n");
    EXPECT_EQ(Read().bytes, std::numeric_limits<size_t>::max()) << line;
  }
  Put("/proc/meminfo", std::string("MemAvailable: 12 kB\n") + std::string(1 << 20, 'x'));
  EXPECT_EQ(Read().bytes, std::numeric_limits<size_t>::max());
  for (const std::string groups :
       {"", "0", "0:", "::", "0::", "0:memory:/x", "\n\n", "0::/../.."}) {
    Put("/proc/self/cgroup", groups);
    EXPECT_EQ(Read().bytes, std::numeric_limits<size_t>::max()) << groups;
  }
}

TEST_F(AvailableMemoryTest, AGroupsLimitCountsLessWhatItUsesAndCannotDrop) {
  Put("/proc/meminfo", "MemAvailable: 1000 kB\n");
  Put("/proc/self/cgroup", "0::/serving\n");
  Put("/sys/fs/cgroup/serving/memory.max", "700000\n");
  EXPECT_EQ(Read().bytes, 700'000u);
  EXPECT_EQ(Read().limit, "/sys/fs/cgroup/serving/memory.max");
  Put("/sys/fs/cgroup/serving/memory.current", "300000\n");
  EXPECT_EQ(Read().bytes, 400'000u);
  Put("/sys/fs/cgroup/serving/memory.stat",
      "anon 100000\nfile 200000\ninactive_file 50000\nworkingset_inactive_file 7\n");
  EXPECT_EQ(Read().bytes, 450'000u);
  Put("/sys/fs/cgroup/serving/memory.current", "800000\n");
  EXPECT_EQ(Read().bytes, 0u);
  Put("/sys/fs/cgroup/serving/memory.current", "10000\n");
  EXPECT_EQ(Read().bytes, 700'000u) << "drops no more than it uses";
  Put("/sys/fs/cgroup/serving/memory.max", "max\n");
  EXPECT_EQ(Read().bytes, 1'024'000u);
  EXPECT_EQ(Read().limit, "MemAvailable in /proc/meminfo");
}

TEST_F(AvailableMemoryTest, TheGroupsAboveCountToo) {
  Put("/proc/self/cgroup", "0::/a/b:c/d\n");
  Put("/sys/fs/cgroup/a/b:c/d/memory.max", "9000");
  Put("/sys/fs/cgroup/a/b:c/memory.max", "max");
  Put("/sys/fs/cgroup/a/memory.max", "5000");
  Put("/sys/fs/cgroup/a/memory.current", "1000");
  EXPECT_EQ(Read().bytes, 4000u);
  EXPECT_EQ(Read().limit, "/sys/fs/cgroup/a/memory.max");
  // A container sees its own group as the root of the tree.
  Put("/sys/fs/cgroup/memory.max", "3000");
  EXPECT_EQ(Read().bytes, 3000u);
  EXPECT_EQ(Read().limit, "/sys/fs/cgroup/memory.max");
  Put("/proc/self/cgroup", "0::/../other\n");
  EXPECT_EQ(Read().bytes, 3000u);
}

TEST_F(AvailableMemoryTest, VersionOneIsUnderstood) {
  Put("/proc/self/cgroup", "5:devices:/\n4:cpu,memory:/docker/1234\n1:memoryless:/x\n0::/\n");
  const std::string group = "/sys/fs/cgroup/memory/docker/1234/";
  Put(group + "memory.limit_in_bytes", "9223372036854771712\n");
  Put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "6000\n");
  EXPECT_EQ(Read().bytes, 6000u);
  Put(group + "memory.limit_in_bytes", "5000\n");
  Put(group + "memory.usage_in_bytes", "2000\n");
  Put(group + "memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
  EXPECT_EQ(Read().bytes, 3500u);
  EXPECT_EQ(Read().limit, group + "memory.limit_in_bytes");
}

TEST_F(AvailableMemoryTest, ThisSystemHasSomeMemoryLeft) {
  const AvailableMemory available = ReadAvailableMemory();
  EXPECT_GT(available.bytes, 1u << 20) << available.limit;
}

}  // namespace
}  // namespace kvcache
