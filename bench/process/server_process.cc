#include "kvcache/bench/process/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace kvcache::bench {
namespace {

constexpr std::chrono::seconds kPatience(10);
constexpr std::chrono::milliseconds kPause(2);

// Empty when there is none.
std::string FindProgram(absl::string_view name) {
  const char* path = std::getenv("PATH");
  for (absl::string_view folder : absl::StrSplit(path == nullptr ? "/usr/bin:/bin" : path, ':')) {
    const std::string file = absl::StrCat(folder, "/", name);
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

// In the child, between fork and exec: nothing but system calls.
[[noreturn]] void Become(const char* program, char* const* arguments, const char* dir,
                         const char* log, pid_t parent) {
  // Before the check of the parent, which may have gone already.
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(126);
  setpgid(0, 0);
  const int in = open("/dev/null", O_RDONLY);
  const int out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) _exit(126);
  if (chdir(dir) != 0) _exit(126);
  execv(program, arguments);
  _exit(127);
}

bool Listens(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return false;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool connected =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return connected;
}

std::string LastLine(const std::string& path) {
  std::ifstream file(path);
  std::string text(std::istreambuf_iterator<char>(file), {});
  absl::StripAsciiWhitespace(&text);
  return text.substr(text.find_last_of('\n') + 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const std::vector<std::string>& command, const ScratchDir& dir, const std::string& socket) {
  const std::string program = FindProgram(command[0]);
  if (program.empty()) {
    return absl::UnimplementedError(absl::StrCat("there is no ", command[0], " in PATH"));
  }
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const std::string log = absl::StrCat(dir.path(), "/log");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::UnavailableError(absl::StrCat("cannot fork: ", std::strerror(errno)));
  if (pid == 0) {
    Become(program.c_str(), arguments.data(), dir.path().c_str(), log.c_str(), parent);
  }

  std::unique_ptr<ServerProcess> server(new ServerProcess(pid));
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!Listens(socket)) {
    if (server->Ended()) {
      return absl::UnavailableError(absl::StrCat(program, " has ended: ", LastLine(log)));
    }
    if (std::chrono::steady_clock::now() > deadline) {
      return absl::UnavailableError(absl::StrCat(program, " does not listen: ", LastLine(log)));
    }
    std::this_thread::sleep_for(kPause);
  }
  return server;
}

bool ServerProcess::Ended() {
  if (!ended_) ended_ = waitpid(pid_, nullptr, WNOHANG) == pid_;
  return ended_;
}

ServerProcess::~ServerProcess() {
  if (ended_) return;
  kill(pid_, SIGKILL);  // it has nothing to save
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace kvcache::bench
