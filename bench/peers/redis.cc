#include "kvcache/bench/peers/contenders.h"

#if KVCACHE_HAVE_HIREDIS
#include <hiredis/hiredis.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/bench/process/scratch_dir.h"
#include "kvcache/bench/process/server_process.h"

namespace kvcache::bench {
namespace {

struct FreeContext {
  void operator()(redisContext* context) const { redisFree(context); }
};
using Context = std::unique_ptr<redisContext, FreeContext>;

struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

class Redis : public Contender {
 public:
  Redis(ScratchDir dir, std::unique_ptr<ServerProcess> server, Context context)
      : dir_(std::move(dir)), server_(std::move(server)), context_(std::move(context)) {}

  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    const ConstBytes arguments[] = {Bytes("SET"), Key(block), payload};
    const Reply reply = Call(arguments);
    if (reply == nullptr || reply->type != REDIS_REPLY_STATUS) return Failure(reply.get());
    return absl::OkStatus();
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    const ConstBytes arguments[] = {Bytes("GET"), Key(block)};
    last_reply_ = Call(arguments);
    if (last_reply_ != nullptr && last_reply_->type == REDIS_REPLY_NIL) {
      return absl::NotFoundError("");
    }
    if (last_reply_ == nullptr || last_reply_->type != REDIS_REPLY_STRING) {
      return Failure(last_reply_.get());
    }
    return Bytes({last_reply_->str, static_cast<size_t>(last_reply_->len)});
  }

 private:
  static ConstBytes Bytes(absl::string_view text) {
    return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
  }
  static ConstBytes Key(const Block& block) {
    return {reinterpret_cast<const std::byte*>(block.key.bytes.data()), block.key.bytes.size()};
  }

  Reply Call(absl::Span<const ConstBytes> arguments) {
    const char* data[3];
    size_t sizes[3];
    for (size_t i = 0; i < arguments.size(); ++i) {
      data[i] = reinterpret_cast<const char*>(arguments[i].data());
      sizes[i] = arguments[i].size();
    }
    return Reply(static_cast<redisReply*>(
        redisCommandArgv(context_.get(), static_cast<int>(arguments.size()), data, sizes)));
  }

  absl::Status Failure(const redisReply* reply) const {
    if (reply == nullptr) return absl::UnavailableError(absl::StrCat("redis: ", context_->errstr));
    if (reply->type == REDIS_REPLY_ERROR) {
      return absl::InternalError(absl::StrCat("redis: ", reply->str));
    }
    return absl::InternalError(absl::StrCat("redis: unexpected reply of type ", reply->type));
  }

  const ContenderTraits traits_;
  const ScratchDir dir_;
  const std::unique_ptr<ServerProcess> server_;
  const Context context_;
  Reply last_reply_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateRedis(const ContenderOptions& options) {
  absl::StatusOr<ScratchDir> dir = ScratchDir::Create(ScratchDir::Kind::kTemporary);
  if (!dir.ok()) return dir.status();
  const std::string socket = absl::StrCat(dir->path(), "/socket");
  absl::StatusOr<std::unique_ptr<ServerProcess>> server = ServerProcess::Start(
      {"redis-server", "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700", "--dir",
       dir->path(), "--save", "", "--appendonly", "no", "--maxmemory",
       absl::StrCat(options.capacity_bytes), "--maxmemory-policy", "allkeys-lru"},
      *dir, socket);
  if (!server.ok()) return server.status();
  const timeval timeout = {.tv_sec = 10, .tv_usec = 0};
  Context context(redisConnectUnixWithTimeout(socket.c_str(), timeout));
  if (context == nullptr || context->err != 0 ||
      redisSetTimeout(context.get(), timeout) != REDIS_OK) {
    return absl::UnavailableError(
        absl::StrCat("redis: ", context == nullptr ? "no memory" : context->errstr));
  }
  context->reader->maxbuf = 0;  // keeps its buffer from reply to reply
  return std::make_unique<Redis>(*std::move(dir), *std::move(server), std::move(context));
}

}  // namespace kvcache::bench

#else

namespace kvcache::bench {

absl::StatusOr<std::unique_ptr<Contender>> CreateRedis(const ContenderOptions&) {
  return absl::UnimplementedError("built without libhiredis-dev");
}

}  // namespace kvcache::bench

#endif
