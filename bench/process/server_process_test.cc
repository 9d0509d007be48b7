#include "kvcache/bench/process/server_process.h"

#include <signal.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

ScratchDir NewDir() { return *ScratchDir::Create(ScratchDir::Kind::kTemporary); }

TEST(ScratchDirTest, IsForItsOwnerOnlyAndGoesWithAllInIt) {
  std::optional<ScratchDir> dir = NewDir();
  const std::string path = dir->path();
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
  std::ofstream(path + "/file") << "text";
  dir.reset();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(ScratchDirTest, MovesAlongWithItsFolder) {
  ScratchDir dir = NewDir();
  const std::string path = dir.path();
  {
    const ScratchDir moved = std::move(dir);
    EXPECT_TRUE(std::filesystem::exists(moved.path()));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(ScratchDirTest, SaysThatThereIsTooLittleRoom) {
  const ScratchDir dir = NewDir();
  EXPECT_TRUE(dir.CheckFree(1).ok());
  const absl::Status status = dir.CheckFree(size_t{1} << 60);
  EXPECT_TRUE(absl::IsUnimplemented(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "1099511627776 MiB")) << status;
}

TEST(ServerProcessTest, AMissingProgramIsNamed) {
  const ScratchDir dir = NewDir();
  const auto server = ServerProcess::Start({"no-such-server"}, dir, dir.path() + "/socket");
  EXPECT_TRUE(absl::IsUnimplemented(server.status()));
  EXPECT_TRUE(absl::StrContains(server.status().message(), "no-such-server"));
}

TEST(ServerProcessTest, AServerThatEndsIsQuoted) {
  const ScratchDir dir = NewDir();
  const auto server = ServerProcess::Start({"sh", "-c", "echo cannot do it >&2; exit 3"}, dir,
                                           dir.path() + "/socket");
  EXPECT_TRUE(absl::IsUnavailable(server.status()));
  EXPECT_TRUE(absl::StrContains(server.status().message(), "cannot do it")) << server.status();
}

TEST(ServerProcessTest, DiesWithItsHandle) {
  const ScratchDir dir = NewDir();
  auto server = ServerProcess::Start(
      {"python3", "-c",
       "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.listen(); "
       "time.sleep(600)"},
      dir, dir.path() + "/socket");
  ASSERT_TRUE(server.ok()) << server.status();
  const pid_t pid = (*server)->pid();
  EXPECT_EQ(kill(pid, 0), 0);
  server->reset();
  EXPECT_EQ(kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

}  // namespace
}  // namespace kvcache::bench
