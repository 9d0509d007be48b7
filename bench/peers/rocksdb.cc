#include "kvcache/bench/peers/contenders.h"

#if KVCACHE_HAVE_ROCKSDB
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/bench/process/scratch_dir.h"

namespace kvcache::bench {
namespace {

absl::Status ToStatus(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsNotFound()) return absl::NotFoundError("");
  return absl::UnavailableError(absl::StrCat("rocksdb: ", status.ToString()));
}

class RocksDb : public Contender {
 public:
  RocksDb(ScratchDir dir, std::unique_ptr<rocksdb::DB> db)
      : dir_(std::move(dir)), db_(std::move(db)) {
    write_.disableWAL = true;
  }

  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    return ToStatus(db_->Put(write_, Key(block),
                             {reinterpret_cast<const char*>(payload.data()), payload.size()}));
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    const absl::Status status = ToStatus(db_->Get(read_, Key(block), &last_value_));
    if (!status.ok()) return status;
    return ConstBytes(reinterpret_cast<const std::byte*>(last_value_.data()), last_value_.size());
  }

  absl::Status GetZeroCopy(const Block& block, absl::FunctionRef<void(ConstBytes)> use) override {
    rocksdb::PinnableSlice value;
    const absl::Status status =
        ToStatus(db_->Get(read_, db_->DefaultColumnFamily(), Key(block), &value));
    if (!status.ok()) return status;
    use({reinterpret_cast<const std::byte*>(value.data()), value.size()});
    return absl::OkStatus();
  }

  absl::Status Settle() override { return ToStatus(db_->Flush(rocksdb::FlushOptions())); }

 private:
  static rocksdb::Slice Key(const Block& block) {
    return {reinterpret_cast<const char*>(block.key.bytes.data()), block.key.bytes.size()};
  }

  const ContenderTraits traits_ = {.zero_copy = true};
  const ScratchDir dir_;
  const std::unique_ptr<rocksdb::DB> db_;
  rocksdb::WriteOptions write_;
  rocksdb::ReadOptions read_;
  std::string last_value_;
};

// A database that behaves like a cache: its oldest file goes when the files are full. Half of the
// capacity is for files, since what is read lies in the block cache once more.
rocksdb::Options MakeOptions(const ContenderOptions& options) {
  const size_t capacity = options.capacity_bytes;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(capacity / 32 * 13, /*num_shard_bits=*/0);
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  rocksdb::Options db;
  db.create_if_missing = true;
  db.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  db.compression = rocksdb::kNoCompression;
  db.write_buffer_size = capacity / 32;
  db.max_write_buffer_number = 3;
  db.compaction_style = rocksdb::kCompactionStyleFIFO;
  db.compaction_options_fifo.max_table_files_size = capacity / 2;
  db.level0_slowdown_writes_trigger = std::numeric_limits<int>::max();
  db.level0_stop_writes_trigger = std::numeric_limits<int>::max();
  db.max_open_files = -1;
  return db;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateRocksDb(const ContenderOptions& options) {
  absl::StatusOr<ScratchDir> dir = ScratchDir::Create(ScratchDir::Kind::kInMemory);
  if (!dir.ok()) return dir.status();
  // A file is written before the oldest one goes.
  if (absl::Status s = dir->CheckFree(options.capacity_bytes / 8 * 5); !s.ok()) return s;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened = rocksdb::DB::Open(MakeOptions(options), dir->path(), &db);
  if (!opened.ok()) return ToStatus(opened);
  return std::make_unique<RocksDb>(*std::move(dir), std::unique_ptr<rocksdb::DB>(db));
}

}  // namespace kvcache::bench

#else

namespace kvcache::bench {

absl::StatusOr<std::unique_ptr<Contender>> CreateRocksDb(const ContenderOptions&) {
  return absl::UnimplementedError("built without librocksdb-dev");
}

}  // namespace kvcache::bench

#endif
