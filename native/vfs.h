// The VFS: holds databases in memory, captures each transaction at SQLite's commit, publishes or drops it later.
//
// Knows pages, frames, the wal-index and its locks. Does not know Raft, SQL, N-API or clients.
//
// Every database has two views. SPEC is what SQLite's shared wal-index header says: all transactions that SQLite has
// committed. PUB is a copy of the header as of the last published transaction. A reader that may only see what is
// replicated opens PUB as a snapshot (sqlite3_snapshot_open); nothing else needs to know that there are two.
//
//   frames   1 ………… PUB.max_frame ………… SPEC.max_frame ………… written by the open transaction
//              published            captured               (cut when it rolls back)
//
// Threads: SQLite calls the VFS from the loop and from workers, so whatever both may touch is behind Database's one
// mutex. Page images are read outside of it: an image is never changed or freed while somebody may read it, because
// frames are only written by the holder of the write lock, above SPEC, and only freed when nobody reads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sqlite3.h"
#include "wal.h"

namespace vfs {

// Names one page image in a PageStore. Not an address.
using PageRef = uint64_t;
inline constexpr PageRef kNoPage = 0;

// Where page images live. Calls that change the set of images come one at a time; Read may run beside them for images
// that stay.
class PageStore {
 public:
  virtual ~PageStore() = default;
  virtual PageRef Add(const uint8_t* image) = 0;  // kNoPage: no memory
  virtual void Overwrite(PageRef ref, const uint8_t* image) = 0;
  virtual void Read(PageRef ref, uint32_t offset, uint32_t bytes, uint8_t* out) const = 0;
  virtual void Free(PageRef ref) = 0;
};

std::unique_ptr<PageStore> MakeMemoryPageStore();

// Page number → image. Sparse, so that a wild page number costs little.
class PageTable {
 public:
  PageRef Get(uint32_t page_number) const;
  // Returns what was there before.
  PageRef Set(uint32_t page_number, PageRef ref);
  // Forgets the pages above, and says which images they had.
  std::vector<PageRef> CutAbove(uint32_t page_number);

 private:
  static constexpr uint32_t kLeafPages = 1024;
  std::vector<std::unique_ptr<std::array<PageRef, kLeafPages>>> leaves_;
};

struct File;  // an open main or WAL file, vfs.cc

struct Options {
  // A transaction whose FRAMES command would be larger is refused at its commit, and rolled back by SQLite.
  uint64_t command_bytes_max = 256u << 20;
};

// One database. Unless a member says otherwise it belongs to the loop thread.
class Database {
 public:
  Database(std::string name, const Options& options);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  const std::string& name() const { return name_; }

  // --- leader
  size_t speculative() const;         // transactions captured and neither published nor dropped
  size_t CapturedBytes() const;       // size of the oldest captured command that was not taken yet; 0: none
  void TakeCaptured(uint8_t* out);    // writes it: a FRAMES command (raft-wire §5.1)
  bool Publish();                     // false: nothing is captured
  bool DropSpeculative();             // false: somebody holds the write lock. Closes nothing: the caller has
  bool NeedsSnapshot() const;         // PUB and SPEC differ, or may at any moment
  wal::IndexHeader Published() const;
  // A worker runs a statement that commits by itself: until the end, readers must open PUB and nothing may move.
  void BeginWorkerCommits();
  void EndWorkerCommits();

  // --- follower. A whole FRAMES command; nullptr or what is wrong with it. Changes nothing when it is refused.
  const char* Apply(const uint8_t* command, size_t bytes);

  // --- maintenance
  uint32_t frames() const;            // committed ones, either view
  uint32_t pages() const;             // of the committed view
  bool Checkpoint();                  // false: readers or speculative transactions in the way
  bool is_deleted() const;            // the committed view is what PRAGMA delete_database leaves (raft-wire §5.2)
  bool is_idle() const;               // no lock of any kind is held

 private:
  friend struct VfsMethods;
  friend class Image;
  friend class Restore;
  friend class Vfs;

  struct Frame {
    uint8_t header[wal::kFrameHeaderBytes];
    PageRef page;
  };
  struct Transaction {
    wal::IndexHeader header;  // as of its commit
    uint32_t first_frame, last_frame;
  };

  // --- called by SQLite through the VFS, any thread
  int ReadMain(uint64_t offset, int bytes, uint8_t* out);
  int ReadWal(uint64_t offset, int bytes, uint8_t* out);
  int WriteWal(uint64_t offset, int bytes, const uint8_t* data);
  int64_t MainBytes() const;
  int64_t WalBytes() const;
  int MapRegion(uint32_t number, bool extend, void volatile** out);
  int Lock(File* file, int first, int count, int flags);
  void UnlockAll(File* file);
  int CommitDeletion(File* file);

  // --- with the mutex held
  uint8_t* RegionBase(uint32_t number);  // creates it; nullptr: no memory
  wal::IndexHeader* Headers() const { return reinterpret_cast<wal::IndexHeader*>(regions_[0].get()); }
  wal::CheckpointInfo* Info() const;
  void WriteHeader(wal::IndexHeader header);  // into both copies, SQLite's order
  bool IndexFrame(uint32_t frame, uint32_t page_number);
  void CleanIndex(uint32_t max_frame);
  uint32_t FindFrame(uint32_t page_number, uint32_t max_frame) const;  // 0: not in the WAL
  void CutFrames(uint32_t count);
  bool AddFrame(uint32_t page_number, uint32_t size_pages, const uint8_t* image);
  void OnWriteUnlocked(File* file);
  bool HasReaders() const;
  void ResetMarks();
  const Transaction* NextToTake() const;
  uint64_t CommandBytes(uint64_t frames) const;
  size_t CollectImages(const Transaction& transaction);

  const std::string name_;
  const Options options_;
  mutable std::mutex mutex_;
  std::unique_ptr<PageStore> store_;
  PageTable main_;
  uint32_t main_pages_ = 1;  // size of the main file
  std::vector<Frame> frames_;
  uint8_t wal_header_[wal::kHeaderBytes] = {};
  std::vector<std::unique_ptr<uint8_t[]>> regions_;
  // SPEC as of the last commit; the shared header holds the same.
  wal::IndexHeader spec_{};
  wal::IndexHeader pub_{};
  std::deque<Transaction> captured_;
  size_t taken_ = 0;  // of captured_
  uint32_t shared_[wal::kLocks] = {};
  File* exclusive_[wal::kLocks] = {};
  uint32_t pins_ = 0;            // open images
  uint32_t worker_commits_ = 0;
  uint32_t applied_ = 0;         // makes every header that Apply writes unique
  std::vector<uint32_t> images_; // frames of the command being encoded, last image of each page
};

// The committed view of one instant, pinned: page after page, with the size in page 1's header equal to the number of
// pages (disk-format §8). Keeps the old content when the database is replaced or forgotten.
class Image {
 public:
  explicit Image(std::shared_ptr<Database> database);
  ~Image();
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  uint64_t bytes() const { return static_cast<uint64_t>(pages_) * wal::kPageBytes; }
  size_t Read(uint8_t* out, size_t bytes);  // the next bytes; 0: the end
  void Close();

 private:
  std::shared_ptr<Database> database_;
  uint32_t max_frame_;
  uint32_t pages_;
  uint64_t offset_ = 0;
};

// New content for a database, collected in chunks of any size.
class Restore {
 public:
  Restore(std::string name, uint64_t bytes, const Options& options);
  const char* Write(const uint8_t* chunk, size_t bytes);  // nullptr or what is wrong
  // The restored database; empty, with `error` set, if the content is not whole.
  std::shared_ptr<Database> Finish(const char** error);

 private:
  std::shared_ptr<Database> database_;
  uint64_t bytes_;
  uint64_t written_ = 0;
  std::vector<uint8_t> page_;  // the beginning of a page whose rest has not come yet
};

// What a name stands for: the content can be replaced while the name stays.
struct Slot {
  std::string name;
  std::shared_ptr<Database> database;
  uint32_t connections = 0;
};

// One instance per engine, registered with SQLite under a name of its own.
class Vfs {
 public:
  explicit Vfs(const Options& options);
  ~Vfs();  // no connection may be open
  Vfs(const Vfs&) = delete;
  Vfs& operator=(const Vfs&) = delete;

  static bool IsName(std::string_view name);           // may a database have this name?
  std::shared_ptr<Slot> Open(const std::string& name);  // existing or new
  std::shared_ptr<Slot> Find(const std::string& name) const;
  const std::vector<std::shared_ptr<Slot>>& slots() const { return slots_; }  // in order of creation
  bool Drop(const std::string& name);                  // false: connections are open
  const Options& options() const { return options_; }

  // Opens SQLite on the slot's database; the caller owns the handle and has counted the connection.
  int Connect(const Slot& slot, sqlite3** out);
  // The main file's state of a connection.
  static bool HoldsWriteLock(sqlite3* db);
  static bool TakeTooBig(sqlite3* db);  // was a commit refused because of command_bytes_max? Forgets it

 private:
  friend struct VfsMethods;
  std::shared_ptr<Database> FindDatabase(std::string_view name) const;

  const Options options_;
  std::string registered_name_;
  sqlite3_vfs methods_{};
  sqlite3_vfs* unix_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Slot>> slots_;
  std::unordered_map<std::string, std::shared_ptr<Slot>> by_name_;
  const Slot* connecting_ = nullptr;  // the only time at which a main file may be opened (no ATTACH)
};

}  // namespace vfs
