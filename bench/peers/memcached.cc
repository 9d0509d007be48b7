#include "kvcache/bench/peers/contenders.h"

#if KVCACHE_HAVE_LIBMEMCACHED
#include <libmemcached/memcached.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/bench/process/scratch_dir.h"
#include "kvcache/bench/process/server_process.h"

namespace kvcache::bench {
namespace {

struct FreeClient {
  void operator()(memcached_st* client) const { memcached_free(client); }
};
using Client = std::unique_ptr<memcached_st, FreeClient>;

struct FreeValue {
  void operator()(char* value) const { std::free(value); }
};

class Memcached : public Contender {
 public:
  Memcached(ScratchDir dir, std::unique_ptr<ServerProcess> server, Client client)
      : dir_(std::move(dir)), server_(std::move(server)), client_(std::move(client)) {}

  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    const memcached_return_t code =
        memcached_set(client_.get(), Key(block), block.key.bytes.size(),
                      reinterpret_cast<const char*>(payload.data()), payload.size(), 0, 0);
    return code == MEMCACHED_SUCCESS ? absl::OkStatus() : Failure(code);
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    size_t bytes = 0;
    uint32_t flags = 0;
    memcached_return_t code = MEMCACHED_SUCCESS;
    last_value_.reset();
    last_value_.reset(
        memcached_get(client_.get(), Key(block), block.key.bytes.size(), &bytes, &flags, &code));
    if (code == MEMCACHED_NOTFOUND) return absl::NotFoundError("");
    if (code != MEMCACHED_SUCCESS) return Failure(code);
    return ConstBytes(reinterpret_cast<const std::byte*>(last_value_.get()), bytes);
  }

 private:
  static const char* Key(const Block& block) {
    return reinterpret_cast<const char*>(block.key.bytes.data());
  }

  absl::Status Failure(memcached_return_t code) const {
    return absl::UnavailableError(
        absl::StrCat("memcached: ", memcached_strerror(client_.get(), code)));
  }

  const ContenderTraits traits_;
  const ScratchDir dir_;
  const std::unique_ptr<ServerProcess> server_;
  const Client client_;
  std::unique_ptr<char, FreeValue> last_value_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateMemcached(const ContenderOptions& options) {
  absl::StatusOr<ScratchDir> dir = ScratchDir::Create(ScratchDir::Kind::kTemporary);
  if (!dir.ok()) return dir.status();
  const std::string socket = absl::StrCat(dir->path(), "/socket");
  constexpr size_t kMiB = size_t{1} << 20;
  std::vector<std::string> command = {
      "memcached", "-s", socket, "-a", "700", "-m", absl::StrCat(options.capacity_bytes / kMiB),
      // The largest item, 1 MiB unless said otherwise. Items above 512 KiB are made of several
      // chunks of at most that.
      "-I", absl::StrCat(std::max(2 * options.payload_bytes, kMiB))};
  // It does not run as root unless told to; the folder is its user's only.
  if (geteuid() == 0) command.insert(command.end(), {"-u", "root"});
  absl::StatusOr<std::unique_ptr<ServerProcess>> server =
      ServerProcess::Start(command, *dir, socket);
  if (!server.ok()) return server.status();
  Client client(memcached_create(nullptr));
  // The text protocol has no keys of arbitrary bytes.
  memcached_return_t code =
      memcached_behavior_set(client.get(), MEMCACHED_BEHAVIOR_BINARY_PROTOCOL, 1);
  if (code == MEMCACHED_SUCCESS) {
    code = memcached_server_add_unix_socket(client.get(), socket.c_str());
  }
  if (code != MEMCACHED_SUCCESS) {
    return absl::UnavailableError(
        absl::StrCat("memcached: ", memcached_strerror(client.get(), code)));
  }
  return std::make_unique<Memcached>(*std::move(dir), *std::move(server), std::move(client));
}

}  // namespace kvcache::bench

#else

namespace kvcache::bench {

absl::StatusOr<std::unique_ptr<Contender>> CreateMemcached(const ContenderOptions&) {
  return absl::UnimplementedError("built without libmemcached-dev");
}

}  // namespace kvcache::bench

#endif
