// See vfs.h. The order below: page store, database, image and restore, then what SQLite calls.
#include "vfs.h"

#include <atomic>
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <unordered_set>

namespace vfs {

using wal::GetBigEndian32;
using wal::IndexHeader;
using wal::kPageBytes;
using wal::PutBigEndian32;

// ------------------------------------------------------------------------------------------------- page store

namespace {

// Images in slabs of 256 pages. Freed pages are used again last in, first out: the first touch of fresh memory costs
// more than the copy. A slab that is empty is given back unless it is the only one with room.
class MemoryPageStore final : public PageStore {
 public:
  ~MemoryPageStore() override {
    for (Slab* slab : slabs_) FreeSlab(slab);
  }

  PageRef Add(const uint8_t* image) override {
    if (partial_ == nullptr && !AddSlab()) return kNoPage;
    Slab* slab = partial_;
    uint8_t* page = slab->free;
    if (page != nullptr) {
      std::memcpy(&slab->free, page, sizeof slab->free);
    } else {
      page = reinterpret_cast<uint8_t*>(slab) + (1 + slab->fresh++) * static_cast<size_t>(kPageBytes);
    }
    if (++slab->used == kSlabPages) Unlink(slab);
    std::memcpy(page, image, kPageBytes);
    return reinterpret_cast<PageRef>(page);
  }

  void Overwrite(PageRef ref, const uint8_t* image) override {
    std::memcpy(reinterpret_cast<uint8_t*>(ref), image, kPageBytes);
  }

  void Read(PageRef ref, uint32_t offset, uint32_t bytes, uint8_t* out) const override {
    std::memcpy(out, reinterpret_cast<const uint8_t*>(ref) + offset, bytes);
  }

  void Free(PageRef ref) override {
    uint8_t* page = reinterpret_cast<uint8_t*>(ref);
    Slab* slab = reinterpret_cast<Slab*>(ref & ~static_cast<PageRef>(kSlabBytes - 1));
    std::memcpy(page, &slab->free, sizeof slab->free);
    slab->free = page;
    if (slab->used-- == kSlabPages) Link(slab);
    if (slab->used == 0 && (slab->next != nullptr || slab->previous != nullptr)) {
      Unlink(slab);
      slabs_.erase(slab);
      FreeSlab(slab);
    }
  }

 private:
  static constexpr size_t kSlabBytes = 1 << 20;
  static constexpr uint32_t kSlabPages = kSlabBytes / kPageBytes - 1;  // the first page is the slab's own

  struct Slab {
    uint8_t* free;   // linked through the first bytes of each free page
    uint32_t fresh;  // pages handed out for the first time so far
    uint32_t used;
    Slab* next;  // among those with room
    Slab* previous;
  };

  bool AddSlab() {
    void* memory = std::aligned_alloc(kSlabBytes, kSlabBytes);
    if (memory == nullptr) return false;
    Slab* slab = new (memory) Slab{};
    slabs_.insert(slab);
    Link(slab);
    return true;
  }
  static void FreeSlab(Slab* slab) { std::free(slab); }
  void Link(Slab* slab) {
    slab->previous = nullptr;
    slab->next = partial_;
    if (partial_ != nullptr) partial_->previous = slab;
    partial_ = slab;
  }
  void Unlink(Slab* slab) {
    if (slab->previous != nullptr) slab->previous->next = slab->next;
    if (slab->next != nullptr) slab->next->previous = slab->previous;
    if (partial_ == slab) partial_ = slab->next;
    slab->next = slab->previous = nullptr;
  }

  std::unordered_set<Slab*> slabs_;
  Slab* partial_ = nullptr;
};

uint32_t RandomWord() {
  static thread_local std::mt19937 generator{std::random_device{}()};
  return static_cast<uint32_t>(generator());
}

// Page 1 of an empty database in WAL mode, as SQLite writes it for PRAGMA journal_mode=WAL (file format, section 1.3).
void MakeFirstPage(uint8_t* page) {
  std::memset(page, 0, kPageBytes);
  std::memcpy(page, "SQLite format 3", 16);
  page[16] = kPageBytes >> 8;
  page[18] = page[19] = 2;  // write and read version: WAL
  page[21] = 64;            // payload fractions
  page[22] = 32;
  page[23] = 32;
  PutBigEndian32(page + 24, 1);  // change counter
  PutBigEndian32(page + 28, 1);  // pages
  PutBigEndian32(page + 92, 1);  // change counter for which the number of pages is valid
  PutBigEndian32(page + 96, SQLITE_VERSION_NUMBER);
  page[100] = 0x0d;  // leaf of a table tree, no cells
  page[105] = kPageBytes >> 8;
}

constexpr uint64_t Pad8(uint64_t n) { return (n + 7) & ~static_cast<uint64_t>(7); }

template <typename T>
T GetLittleEndian(const uint8_t* p) {
  T value;  // hosts are little-endian, as the build targets are
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

std::unique_ptr<PageStore> MakeMemoryPageStore() { return std::make_unique<MemoryPageStore>(); }

PageRef PageTable::Get(uint32_t page_number) const {
  const uint32_t leaf = (page_number - 1) / kLeafPages;
  if (leaf >= leaves_.size() || leaves_[leaf] == nullptr) return kNoPage;
  return (*leaves_[leaf])[(page_number - 1) % kLeafPages];
}

PageRef PageTable::Set(uint32_t page_number, PageRef ref) {
  const uint32_t leaf = (page_number - 1) / kLeafPages;
  if (leaf >= leaves_.size()) leaves_.resize(leaf + 1);
  if (leaves_[leaf] == nullptr) leaves_[leaf] = std::make_unique<std::array<PageRef, kLeafPages>>();
  PageRef& place = (*leaves_[leaf])[(page_number - 1) % kLeafPages];
  const PageRef before = place;
  place = ref;
  return before;
}

std::vector<PageRef> PageTable::CutAbove(uint32_t page_number) {
  std::vector<PageRef> cut;
  const uint32_t first_leaf = page_number / kLeafPages;
  for (uint32_t leaf = first_leaf; leaf < leaves_.size(); leaf++) {
    if (leaves_[leaf] == nullptr) continue;
    for (uint32_t i = leaf == first_leaf ? page_number % kLeafPages : 0; i < kLeafPages; i++) {
      PageRef& place = (*leaves_[leaf])[i];
      if (place != kNoPage) cut.push_back(place);
      place = kNoPage;
    }
  }
  const size_t leaves = (static_cast<size_t>(page_number) + kLeafPages - 1) / kLeafPages;
  if (leaves < leaves_.size()) leaves_.resize(leaves);
  return cut;
}

// ------------------------------------------------------------------------------------------------- open files

struct File {
  sqlite3_file base;
  std::shared_ptr<Database> database;
  bool is_wal;
  uint8_t shared;  // bit per lock slot
  bool delete_requested;  // PRAGMA delete_database ran in the open write transaction
  bool too_big;           // the last commit was refused for its size
};

// ------------------------------------------------------------------------------------------------- database

Database::Database(std::string name, const Options& options)
    : name_(std::move(name)), options_(options), store_(MakeMemoryPageStore()) {
  uint8_t page[kPageBytes];
  MakeFirstPage(page);
  const PageRef ref = store_->Add(page);
  if (ref == kNoPage || RegionBase(0) == nullptr) throw std::bad_alloc();
  main_.Set(1, ref);
  spec_.version = wal::kIndexVersion;
  spec_.is_init = 1;
  spec_.page_bytes = kPageBytes;
  spec_.pages = 1;
  spec_.salt[0] = RandomWord();
  spec_.salt[1] = RandomWord();
  WriteHeader(spec_);
  pub_ = spec_;
  ResetMarks();
}

Database::~Database() = default;

wal::CheckpointInfo* Database::Info() const {
  return reinterpret_cast<wal::CheckpointInfo*>(regions_[0].get() + 2 * sizeof(IndexHeader));
}

void Database::ResetMarks() {
  wal::CheckpointInfo* info = Info();
  info->backfilled = 0;
  info->backfill_attempted = 0;
  info->read_mark[0] = 0;
  for (uint32_t i = 1; i < wal::kReadMarks; i++) info->read_mark[i] = wal::kReadMarkNotUsed;
}

// A reader takes copy 1, then copy 2, and tries again if they differ.
void Database::WriteHeader(IndexHeader header) {
  wal::SetChecksum(&header);
  std::memcpy(&Headers()[1], &header, sizeof header);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::memcpy(&Headers()[0], &header, sizeof header);
  spec_ = header;
}

uint8_t* Database::RegionBase(uint32_t number) {
  while (regions_.size() <= number) {
    std::unique_ptr<uint8_t[]> region(new (std::nothrow) uint8_t[wal::kRegionBytes]());
    if (region == nullptr) return nullptr;
    regions_.push_back(std::move(region));
  }
  return regions_[number].get();
}

// As SQLite's walIndexAppend: later frames of the same page come later in the probe sequence.
bool Database::IndexFrame(uint32_t frame, uint32_t page_number) {
  const uint32_t number = wal::RegionOf(frame);
  uint8_t* base = RegionBase(number);
  if (base == nullptr) return false;
  wal::Region region(base, number);
  const uint32_t place = frame - region.frames_before;  // from 1
  if (place == 1) {
    std::memset(region.page_numbers, 0, wal::kHashOffset - (number == 0 ? wal::kIndexHeaderBytes : 0));
    std::memset(region.hash, 0, wal::kHashSlots * sizeof(uint16_t));
  }
  assert(region.page_numbers[place - 1] == 0);
  uint32_t slot = wal::HashOf(page_number);
  while (region.hash[slot] != 0) slot = wal::NextHash(slot);
  region.page_numbers[place - 1] = page_number;
  __atomic_store_n(&region.hash[slot], static_cast<uint16_t>(place), __ATOMIC_RELEASE);
  return true;
}

// As SQLite's walCleanupHash: forgets frames above max_frame in the region that holds it. Regions after it are cleared
// when their first frame is written again.
void Database::CleanIndex(uint32_t max_frame) {
  if (max_frame == 0) return;
  const uint32_t number = wal::RegionOf(max_frame);
  wal::Region region(regions_[number].get(), number);
  const uint32_t limit = max_frame - region.frames_before;
  for (uint32_t i = 0; i < wal::kHashSlots; i++) {
    if (region.hash[i] > limit) region.hash[i] = 0;
  }
  std::memset(region.page_numbers + limit, 0, (region.capacity - limit) * sizeof(uint32_t));
}

uint32_t Database::FindFrame(uint32_t page_number, uint32_t max_frame) const {
  if (max_frame == 0) return 0;
  for (uint32_t number = wal::RegionOf(max_frame) + 1; number-- > 0;) {
    const wal::Region region(regions_[number].get(), number);
    uint32_t found = 0;
    for (uint32_t slot = wal::HashOf(page_number); region.hash[slot] != 0; slot = wal::NextHash(slot)) {
      const uint32_t frame = region.frames_before + region.hash[slot];
      const bool same = region.page_numbers[region.hash[slot] - 1] == page_number;
      if (same && frame <= max_frame && frame > found) found = frame;
    }
    if (found != 0) return found;
  }
  return 0;
}

void Database::CutFrames(uint32_t count) {
  while (frames_.size() > count) {
    if (frames_.back().page != kNoPage) store_->Free(frames_.back().page);
    frames_.pop_back();
  }
}

// A frame that SQLite did not write. Nobody verifies checksums of frames: the wal-index is never rebuilt from them.
bool Database::AddFrame(uint32_t page_number, uint32_t size_pages, const uint8_t* image) {
  Frame frame{};
  PutBigEndian32(frame.header, page_number);
  PutBigEndian32(frame.header + wal::kFrameSizeOffset, size_pages);
  std::memcpy(frame.header + wal::kFrameSaltOffset, spec_.salt, sizeof spec_.salt);
  frame.page = store_->Add(image);
  if (frame.page == kNoPage) return false;
  frames_.push_back(frame);
  return IndexFrame(static_cast<uint32_t>(frames_.size()), page_number);
}

bool Database::HasReaders() const {
  for (int i = wal::kFirstReadLock; i < wal::kLocks; i++) {
    if (shared_[i] != 0) return true;
  }
  return pins_ != 0 || worker_commits_ != 0;
}

bool Database::is_idle() const {
  const std::lock_guard guard(mutex_);
  return !HasReaders() && exclusive_[wal::kWriteLock] == nullptr;
}

// ---- capture

// The open write transaction has ended. What SQLite has committed is what the shared header says, never the number of
// frames: a statement that failed after its pages were spilled leaves frames behind the commit frame.
void Database::OnWriteUnlocked(File* file) {
  (void)file;
  const IndexHeader header = Headers()[0];
  if (header.max_frame == spec_.max_frame) {
    CutFrames(spec_.max_frame);  // rolled back, or nothing was written
    return;
  }
  assert(header.max_frame > spec_.max_frame);
  assert(frames_.size() >= header.max_frame);
  assert(GetBigEndian32(frames_[header.max_frame - 1].header + wal::kFrameSizeOffset) == header.pages);
  captured_.push_back({header, spec_.max_frame + 1, header.max_frame});
  CutFrames(header.max_frame);
  if (pub_.max_frame == 0) {
    // The first frame of a log brings new salts. A snapshot must have those of the log, also the one before it.
    std::memcpy(pub_.salt, header.salt, sizeof pub_.salt);
    wal::SetChecksum(&pub_);
  }
  spec_ = header;
}

uint64_t Database::CommandBytes(uint64_t frames) const {
  return 8 + Pad8(name_.size() + 1) + 24 + frames * (8 + kPageBytes);
}

const Database::Transaction* Database::NextToTake() const {
  return taken_ < captured_.size() ? &captured_[taken_] : nullptr;
}

// Frames of the transaction in order, without those that a later frame of the same page replaces.
size_t Database::CollectImages(const Transaction& transaction) {
  images_.clear();
  uint32_t previous = 0;
  bool ascending = true;
  for (uint32_t frame = transaction.first_frame; frame <= transaction.last_frame; frame++) {
    const uint32_t page_number = GetBigEndian32(frames_[frame - 1].header);
    ascending = ascending && page_number > previous;
    previous = page_number;
    images_.push_back(frame);
  }
  if (ascending) return images_.size();
  // The cache was spilled: the same page may have been written twice.
  std::unordered_map<uint32_t, uint32_t> last;
  for (const uint32_t frame : images_) last[GetBigEndian32(frames_[frame - 1].header)] = frame;
  std::erase_if(images_, [&](uint32_t frame) { return last[GetBigEndian32(frames_[frame - 1].header)] != frame; });
  return images_.size();
}

size_t Database::speculative() const {
  const std::lock_guard guard(mutex_);
  return captured_.size();
}

size_t Database::CapturedBytes() const {
  const std::lock_guard guard(mutex_);
  const Transaction* transaction = NextToTake();
  if (transaction == nullptr) return 0;
  return CommandBytes(const_cast<Database*>(this)->CollectImages(*transaction));
}

// raft-wire §5.1:
//   0 format 1 · 1 type 2 · 8 name, NUL, zeros to 8 · tx_id 8 · truncate 4 · is_commit 1 · reserved 3 · n_pages 4 ·
//   page_size 2 · reserved 2 · page numbers 8 each · pages
void Database::TakeCaptured(uint8_t* out) {
  const std::lock_guard guard(mutex_);
  const Transaction* transaction = NextToTake();
  assert(transaction != nullptr);
  const uint32_t count = static_cast<uint32_t>(CollectImages(*transaction));
  const size_t name_bytes = Pad8(name_.size() + 1);
  std::memset(out, 0, 8 + name_bytes + 24);
  out[0] = 1;
  out[1] = 2;
  std::memcpy(out + 8, name_.data(), name_.size());
  uint8_t* p = out + 8 + name_bytes;
  p[12] = 1;
  std::memcpy(p + 16, &count, 4);
  p[21] = kPageBytes >> 8;
  p += 24;
  for (const uint32_t frame : images_) {
    const uint64_t page_number = GetBigEndian32(frames_[frame - 1].header);
    std::memcpy(p, &page_number, 8);
    p += 8;
  }
  for (const uint32_t frame : images_) {
    store_->Read(frames_[frame - 1].page, 0, kPageBytes, p);
    p += kPageBytes;
  }
  taken_++;
}

bool Database::Publish() {
  const std::lock_guard guard(mutex_);
  if (captured_.empty()) return false;
  pub_ = captured_.front().header;
  captured_.pop_front();
  if (taken_ > 0) taken_--;
  return true;
}

bool Database::DropSpeculative() {
  const std::lock_guard guard(mutex_);
  if (exclusive_[wal::kWriteLock] != nullptr || worker_commits_ != 0) return false;
  captured_.clear();
  taken_ = 0;
  CleanIndex(pub_.max_frame);
  CutFrames(pub_.max_frame);
  WriteHeader(pub_);
  return true;
}

bool Database::NeedsSnapshot() const {
  const std::lock_guard guard(mutex_);
  return !captured_.empty() || worker_commits_ != 0;
}

IndexHeader Database::Published() const {
  const std::lock_guard guard(mutex_);
  return pub_;
}

void Database::BeginWorkerCommits() {
  const std::lock_guard guard(mutex_);
  worker_commits_++;
}

void Database::EndWorkerCommits() {
  const std::lock_guard guard(mutex_);
  assert(worker_commits_ > 0);
  worker_commits_--;
}

// PRAGMA delete_database: the transaction wrote nothing, its commit is one page that is made here (raft-wire §5.2).
int Database::CommitDeletion(File* file) {
  const std::lock_guard guard(mutex_);
  file->delete_requested = false;
  if (exclusive_[wal::kWriteLock] != nullptr) return SQLITE_BUSY;
  uint8_t page[kPageBytes] = {};
  const uint32_t frame = FindFrame(1, spec_.max_frame);
  store_->Read(frame != 0 ? frames_[frame - 1].page : main_.Get(1), 0, 100, page);
  const uint32_t cookie = GetBigEndian32(page + 40) + spec_.max_frame + 1;
  for (const int offset : {28, 32, 36, 48, 52, 60, 64, 68}) PutBigEndian32(page + offset, 0);
  PutBigEndian32(page + 40, cookie);
  PutBigEndian32(page + 92, 0x01000000);
  page[100] = 0x0d;
  page[105] = kPageBytes >> 8;
  if (!AddFrame(1, 1, page)) {
    CutFrames(spec_.max_frame);
    CleanIndex(spec_.max_frame);
    return SQLITE_NOMEM;
  }
  IndexHeader header = spec_;
  header.max_frame++;
  header.pages = 1;
  header.change++;
  header.frame_checksum[0] = ++applied_;
  WriteHeader(header);
  captured_.push_back({spec_, spec_.max_frame, spec_.max_frame});
  return SQLITE_OK;
}

// ---- follower

const char* Database::Apply(const uint8_t* command, size_t bytes) {
  if (bytes < 16 || command[0] != 1 || command[1] != 2) return "not a FRAMES command";
  const uint8_t* name = command + 8;
  const void* nul = std::memchr(name, 0, bytes - 8);
  if (nul == nullptr) return "the database name does not end";
  const size_t name_bytes = static_cast<size_t>(static_cast<const uint8_t*>(nul) - name);
  if (std::string_view(reinterpret_cast<const char*>(name), name_bytes) != name_) return "names another database";
  const uint64_t fields = 8 + Pad8(name_bytes + 1);
  if (bytes < fields + 24) return "cut short";
  const uint8_t* p = command + fields;
  if (p[12] != 1) return "not a whole transaction (is_commit is not 1)";
  const uint32_t count = GetLittleEndian<uint32_t>(p + 16);
  if (GetLittleEndian<uint16_t>(p + 20) != kPageBytes) return "a page size other than 4096";
  if (count == 0) return "no pages";
  if ((bytes - fields - 24) / (8 + kPageBytes) < count) return "cut short";
  const uint8_t* numbers = p + 24;
  const uint8_t* images = numbers + static_cast<uint64_t>(count) * 8;

  const std::lock_guard guard(mutex_);
  if (!captured_.empty() || exclusive_[wal::kWriteLock] != nullptr) return "the database is being written here";
  // raft-wire §5.2 rule 3: page 1 carries the size.
  uint32_t size = spec_.pages;
  for (uint32_t i = 0; i < count; i++) {
    const uint64_t number = GetLittleEndian<uint64_t>(numbers + i * 8ull);
    if (number == 0 || number > INT32_MAX) return "a page number that cannot be";
    if (number != 1) continue;
    size = GetBigEndian32(images + static_cast<uint64_t>(i) * kPageBytes + 28);
    if (size == 0) {
      if (count != 1) return "deletes the database among other pages";
      size = 1;
    }
  }
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t number = static_cast<uint32_t>(GetLittleEndian<uint64_t>(numbers + i * 8ull));
    const uint8_t* image = images + static_cast<uint64_t>(i) * kPageBytes;
    if (AddFrame(number, i + 1 == count ? size : 0, image)) continue;
    CutFrames(spec_.max_frame);
    CleanIndex(spec_.max_frame);
    return "no memory";
  }
  IndexHeader header = spec_;
  header.max_frame += count;
  header.pages = size;
  header.change++;
  header.frame_checksum[0] = ++applied_;  // a header never comes twice: page caches compare headers
  header.frame_checksum[1] = RandomWord();
  std::memcpy(frames_.back().header + wal::kFrameChecksumOffset, header.frame_checksum, 8);
  WriteHeader(header);
  pub_ = spec_;
  return nullptr;
}

// ---- maintenance

uint32_t Database::frames() const {
  const std::lock_guard guard(mutex_);
  return spec_.max_frame;
}

uint32_t Database::pages() const {
  const std::lock_guard guard(mutex_);
  return pub_.pages;
}

bool Database::is_deleted() const {
  const std::lock_guard guard(mutex_);
  if (pub_.pages != 1) return false;
  const uint32_t frame = FindFrame(1, pub_.max_frame);
  uint8_t size[4];
  store_->Read(frame != 0 ? frames_[frame - 1].page : main_.Get(1), 28, 4, size);
  return GetBigEndian32(size) == 0;
}

// Nobody reads and both views are the same: the newest image of each page moves to the main file, which costs no copy.
bool Database::Checkpoint() {
  const std::lock_guard guard(mutex_);
  if (!captured_.empty() || HasReaders() || exclusive_[wal::kWriteLock] != nullptr) return false;
  assert(std::memcmp(&pub_, &spec_, sizeof pub_) == 0);
  if (spec_.max_frame == 0) return true;
  assert(frames_.size() == spec_.max_frame);
  for (const Frame& frame : frames_) {
    const PageRef before = main_.Set(GetBigEndian32(frame.header), frame.page);
    if (before != kNoPage) store_->Free(before);
  }
  if (frames_.capacity() > 16 * wal::kRegionFrames) frames_ = {};
  frames_.clear();
  for (const PageRef ref : main_.CutAbove(spec_.pages)) store_->Free(ref);
  main_pages_ = spec_.pages;
  IndexHeader header = spec_;
  header.max_frame = 0;
  header.change++;
  header.salt[0]++;
  header.salt[1] = RandomWord();
  // The first frame clears region 0; until then nobody looks at it, because max_frame is 0.
  WriteHeader(header);
  pub_ = spec_;
  ResetMarks();
  return true;
}

// ---- what SQLite reads and writes

int Database::ReadMain(uint64_t offset, int bytes, uint8_t* out) {
  const uint64_t page = offset / kPageBytes + 1;
  const uint32_t within = static_cast<uint32_t>(offset % kPageBytes);
  if (within + static_cast<uint32_t>(bytes) > kPageBytes) return SQLITE_IOERR_READ;  // SQLite reads no more than a page
  PageRef ref = kNoPage;
  bool exists;
  {
    const std::lock_guard guard(mutex_);
    exists = page <= main_pages_;
    if (exists) ref = main_.Get(static_cast<uint32_t>(page));
  }
  if (ref == kNoPage) {
    std::memset(out, 0, static_cast<size_t>(bytes));
    return exists ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
  }
  store_->Read(ref, within, static_cast<uint32_t>(bytes), out);
  return SQLITE_OK;
}

// SQLite reads a page, or, after a spill, a whole frame or a frame's checksum.
int Database::ReadWal(uint64_t offset, int bytes, uint8_t* out) {
  uint32_t left = static_cast<uint32_t>(bytes);
  if (offset < wal::kHeaderBytes) {
    if (offset + left > wal::kHeaderBytes) return SQLITE_IOERR_READ;
    const std::lock_guard guard(mutex_);
    std::memcpy(out, wal_header_ + offset, left);
    return SQLITE_OK;
  }
  const uint64_t index = (offset - wal::kHeaderBytes) / wal::kFrameBytes;
  uint32_t within = static_cast<uint32_t>((offset - wal::kHeaderBytes) % wal::kFrameBytes);
  if (within + left > wal::kFrameBytes) return SQLITE_IOERR_READ;
  Frame frame;
  {
    const std::lock_guard guard(mutex_);
    if (index >= frames_.size() || frames_[index].page == kNoPage) {
      std::memset(out, 0, left);
      return SQLITE_IOERR_SHORT_READ;
    }
    frame = frames_[index];
  }
  if (within < wal::kFrameHeaderBytes) {
    const uint32_t part = std::min(left, wal::kFrameHeaderBytes - within);
    std::memcpy(out, frame.header + within, part);
    out += part;
    within += part;
    left -= part;
  }
  if (left > 0) store_->Read(frame.page, within - wal::kFrameHeaderBytes, left, out);
  return SQLITE_OK;
}

int Database::WriteWal(uint64_t offset, int bytes, const uint8_t* data) {
  const std::lock_guard guard(mutex_);
  File* writer = exclusive_[wal::kWriteLock];
  if (writer == nullptr) return SQLITE_IOERR_WRITE;
  if (offset == 0 && bytes == static_cast<int>(wal::kHeaderBytes)) {
    if (spec_.max_frame != 0) return SQLITE_IOERR_WRITE;
    std::memcpy(wal_header_, data, wal::kHeaderBytes);
    return SQLITE_OK;
  }
  if (offset < wal::kHeaderBytes) return SQLITE_IOERR_WRITE;
  const uint64_t index = (offset - wal::kHeaderBytes) / wal::kFrameBytes;
  const uint64_t within = (offset - wal::kHeaderBytes) % wal::kFrameBytes;
  // Frames of committed transactions never change; a new one comes right after the last.
  if (index < spec_.max_frame || index > frames_.size()) return SQLITE_IOERR_WRITE;
  if (within == 0 && bytes == static_cast<int>(wal::kFrameHeaderBytes)) {
    const bool commits = GetBigEndian32(data + wal::kFrameSizeOffset) != 0;
    if (CommandBytes(index + 1 - spec_.max_frame) > options_.command_bytes_max) {
      // Before its commit, a spill: only "disk full" makes SQLite roll back whatever state the statement is in.
      writer->too_big = true;
      return commits ? SQLITE_TOOBIG : SQLITE_FULL;
    }
    if (commits && writer->delete_requested) return SQLITE_ERROR;
    if (index == frames_.size()) frames_.push_back(Frame{{}, kNoPage});
    std::memcpy(frames_[index].header, data, wal::kFrameHeaderBytes);
    return SQLITE_OK;
  }
  if (within != wal::kFrameHeaderBytes || bytes != static_cast<int>(kPageBytes) || index >= frames_.size())
    return SQLITE_IOERR_WRITE;
  Frame& frame = frames_[index];
  if (frame.page != kNoPage) {
    store_->Overwrite(frame.page, data);
    return SQLITE_OK;
  }
  frame.page = store_->Add(data);
  return frame.page == kNoPage ? SQLITE_NOMEM : SQLITE_OK;
}

int64_t Database::MainBytes() const {
  const std::lock_guard guard(mutex_);
  return static_cast<int64_t>(main_pages_) * kPageBytes;
}

int64_t Database::WalBytes() const {
  const std::lock_guard guard(mutex_);
  if (frames_.empty()) return 0;
  return wal::kHeaderBytes + static_cast<int64_t>(frames_.size()) * wal::kFrameBytes;
}

int Database::MapRegion(uint32_t number, bool extend, void volatile** out) {
  const std::lock_guard guard(mutex_);
  *out = nullptr;
  if (number >= regions_.size() && !extend) return SQLITE_OK;
  *out = RegionBase(number);
  return *out == nullptr ? SQLITE_NOMEM : SQLITE_OK;
}

// Shared locks on READ slots count readers; that is all they are for, because only our own checkpoint moves the log
// under readers, and it wants none of any view. So an exclusive lock on a READ slot, which SQLite takes to move a read
// mark, is granted beside shared ones, and marks never run out.
int Database::Lock(File* file, int first, int count, int flags) {
  const std::lock_guard guard(mutex_);
  const bool shared = (flags & SQLITE_SHM_SHARED) != 0;
  for (int slot = first; slot < first + count; slot++) {
    const uint8_t bit = static_cast<uint8_t>(1u << slot);
    if ((flags & SQLITE_SHM_UNLOCK) != 0) {
      if (shared && (file->shared & bit) != 0) {
        file->shared = static_cast<uint8_t>(file->shared & ~bit);
        shared_[slot]--;
      } else if (!shared && exclusive_[slot] == file) {
        if (slot == wal::kWriteLock) OnWriteUnlocked(file);
        exclusive_[slot] = nullptr;
      }
      continue;
    }
    if (exclusive_[slot] != nullptr && exclusive_[slot] != file) return SQLITE_BUSY;  // the slots before: see below
    if (shared) {
      if ((file->shared & bit) == 0) shared_[slot]++;
      file->shared |= bit;
      continue;
    }
    // Nobody recovers a wal-index, which we keep, and nobody but us checkpoints.
    if (slot == wal::kRecoverLock || slot == wal::kCheckpointLock) return SQLITE_IOERR_SHMLOCK;
    // Only READ slots are locked several at a time, and those are always free: nothing is left half locked.
    exclusive_[slot] = file;
    if (slot == wal::kWriteLock) {
      file->delete_requested = false;
      file->too_big = false;
    }
  }
  return SQLITE_OK;
}

void Database::UnlockAll(File* file) {
  Lock(file, 0, wal::kLocks, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
  Lock(file, 0, wal::kLocks, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
}

// ------------------------------------------------------------------------------------------------- image, restore

Image::Image(std::shared_ptr<Database> database) : database_(std::move(database)) {
  const std::lock_guard guard(database_->mutex_);
  max_frame_ = database_->pub_.max_frame;
  pages_ = database_->pub_.pages;
  database_->pins_++;
}

Image::~Image() { Close(); }

void Image::Close() {
  if (database_ == nullptr) return;
  {
    const std::lock_guard guard(database_->mutex_);
    database_->pins_--;
  }
  database_ = nullptr;
}

size_t Image::Read(uint8_t* out, size_t bytes) {
  size_t done = 0;
  while (database_ != nullptr && done < bytes && offset_ < this->bytes()) {
    const uint32_t page = static_cast<uint32_t>(offset_ / kPageBytes) + 1;
    const uint32_t within = static_cast<uint32_t>(offset_ % kPageBytes);
    const uint32_t part = static_cast<uint32_t>(std::min<size_t>(bytes - done, kPageBytes - within));
    PageRef ref;
    {
      const std::lock_guard guard(database_->mutex_);
      const uint32_t frame = database_->FindFrame(page, max_frame_);
      ref = frame != 0 ? database_->frames_[frame - 1].page : database_->main_.Get(page);
    }
    if (ref == kNoPage) {
      std::memset(out + done, 0, part);  // never written: the page at the pending byte
    } else if (page == 1) {
      uint8_t first[kPageBytes];
      database_->store_->Read(ref, 0, kPageBytes, first);
      PutBigEndian32(first + 28, pages_);
      std::memcpy(out + done, first + within, part);
    } else {
      database_->store_->Read(ref, within, part, out + done);
    }
    done += part;
    offset_ += part;
  }
  return done;
}

Restore::Restore(std::string name, uint64_t bytes, const Options& options)
    : database_(std::make_shared<Database>(std::move(name), options)), bytes_(bytes) {
  page_.reserve(kPageBytes);
}

const char* Restore::Write(const uint8_t* chunk, size_t bytes) {
  if (database_ == nullptr) return "already finished";
  if (bytes > bytes_ - written_) return "more content than announced";
  while (bytes > 0) {
    const uint8_t* image = chunk;
    size_t part = kPageBytes;
    if (!page_.empty() || bytes < kPageBytes) {
      part = std::min(bytes, kPageBytes - page_.size());
      page_.insert(page_.end(), chunk, chunk + part);
      image = page_.data();
    }
    if (page_.empty() || page_.size() == kPageBytes) {
      const uint64_t page = written_ / kPageBytes + 1;
      if (page > INT32_MAX) return "more pages than a database can have";
      const PageRef ref = database_->store_->Add(image);
      if (ref == kNoPage) return "no memory";
      const PageRef before = database_->main_.Set(static_cast<uint32_t>(page), ref);
      if (before != kNoPage) database_->store_->Free(before);
      page_.clear();
    }
    chunk += part;
    bytes -= part;
    written_ += part;
  }
  return nullptr;
}

std::shared_ptr<Database> Restore::Finish(const char** error) {
  *error = nullptr;
  if (database_ == nullptr) *error = "already finished";
  else if (written_ != bytes_) *error = "less content than announced";
  else if (bytes_ == 0 || bytes_ % kPageBytes != 0) *error = "not a whole number of pages";
  if (*error != nullptr) return nullptr;
  const uint32_t pages = static_cast<uint32_t>(bytes_ / kPageBytes);
  uint8_t header[24];
  database_->store_->Read(database_->main_.Get(1), 0, sizeof header, header);
  if (std::memcmp(header, "SQLite format 3", 16) != 0 || header[16] != kPageBytes >> 8 || header[17] != 0 ||
      header[18] != 2 || header[19] != 2) {
    *error = "page 1 is not that of an SQLite database in WAL mode with pages of 4096 bytes";
    return nullptr;
  }
  database_->main_pages_ = pages;
  IndexHeader index = database_->spec_;
  index.pages = pages;
  database_->WriteHeader(index);
  database_->pub_ = database_->spec_;
  return std::move(database_);
}

// ------------------------------------------------------------------------------------------------- SQLite's side

struct VfsMethods {
  static Vfs* Self(sqlite3_vfs* methods) { return static_cast<Vfs*>(methods->pAppData); }
  static File* Cast(sqlite3_file* file) { return reinterpret_cast<File*>(file); }
  static Database* DatabaseOf(sqlite3_file* file) { return Cast(file)->database.get(); }

  static bool EndsWith(std::string_view name, std::string_view suffix) {
    return name.size() >= suffix.size() && name.substr(name.size() - suffix.size()) == suffix;
  }

  static int Open(sqlite3_vfs* methods, sqlite3_filename name, sqlite3_file* file, int flags, int* out_flags);

  static int Delete(sqlite3_vfs*, const char*, int) { return SQLITE_OK; }

  static int Access(sqlite3_vfs* methods, const char* path, int, int* out) {
    std::string_view name(path);
    *out = 0;
    if (EndsWith(name, "-journal")) return SQLITE_OK;
    if (EndsWith(name, "-wal")) name.remove_suffix(4);
    *out = Self(methods)->FindDatabase(name) != nullptr;
    return SQLITE_OK;
  }

  static int FullPathname(sqlite3_vfs*, const char* name, int bytes, char* out) {
    std::snprintf(out, static_cast<size_t>(bytes), "%s", name);
    return SQLITE_OK;
  }

  static int Randomness(sqlite3_vfs* methods, int bytes, char* out) {
    sqlite3_vfs* host = Self(methods)->unix_;
    return host->xRandomness(host, bytes, out);
  }
  static int Sleep(sqlite3_vfs* methods, int us) {
    sqlite3_vfs* host = Self(methods)->unix_;
    return host->xSleep(host, us);
  }
  static int CurrentTime(sqlite3_vfs* methods, double* out) {
    sqlite3_vfs* host = Self(methods)->unix_;
    return host->xCurrentTime(host, out);
  }
  static int CurrentTimeInt64(sqlite3_vfs* methods, sqlite3_int64* out) {
    sqlite3_vfs* host = Self(methods)->unix_;
    return host->xCurrentTimeInt64(host, out);
  }
  static int GetLastError(sqlite3_vfs*, int, char*) { return 0; }

  // --- files

  static int Close(sqlite3_file* file) {
    File* self = Cast(file);
    if (!self->is_wal) self->database->UnlockAll(self);
    self->~File();
    return SQLITE_OK;
  }
  static int Read(sqlite3_file* file, void* out, int bytes, sqlite3_int64 offset) {
    uint8_t* target = static_cast<uint8_t*>(out);
    const uint64_t from = static_cast<uint64_t>(offset);
    return Cast(file)->is_wal ? DatabaseOf(file)->ReadWal(from, bytes, target)
                              : DatabaseOf(file)->ReadMain(from, bytes, target);
  }
  static int Write(sqlite3_file* file, const void* data, int bytes, sqlite3_int64 offset) {
    if (!Cast(file)->is_wal) return SQLITE_IOERR_WRITE;  // only our checkpoint changes the main file
    return DatabaseOf(file)->WriteWal(static_cast<uint64_t>(offset), bytes, static_cast<const uint8_t*>(data));
  }
  // The WAL is only shortened for PRAGMA journal_size_limit, behind its last frame.
  static int Truncate(sqlite3_file* file, sqlite3_int64) {
    return Cast(file)->is_wal ? SQLITE_OK : SQLITE_IOERR_TRUNCATE;
  }
  static int Sync(sqlite3_file*, int) { return SQLITE_OK; }
  static int FileSize(sqlite3_file* file, sqlite3_int64* out) {
    *out = Cast(file)->is_wal ? DatabaseOf(file)->WalBytes() : DatabaseOf(file)->MainBytes();
    return SQLITE_OK;
  }
  static int LockFile(sqlite3_file*, int) { return SQLITE_OK; }
  static int CheckReservedLock(sqlite3_file*, int* out) {
    *out = 0;
    return SQLITE_OK;
  }
  static int FileControl(sqlite3_file* file, int op, void* argument) {
    File* self = Cast(file);
    if (self->is_wal) return SQLITE_NOTFOUND;
    switch (op) {
      case SQLITE_FCNTL_PERSIST_WAL:
        *static_cast<int*>(argument) = 1;
        return SQLITE_OK;
      case SQLITE_FCNTL_PRAGMA:
        return Pragma(self, static_cast<char**>(argument));
      case SQLITE_FCNTL_COMMIT_PHASETWO:
        return self->delete_requested ? self->database->CommitDeletion(self) : SQLITE_OK;
      default:
        return SQLITE_NOTFOUND;
    }
  }
  // arguments: 0 the answer or error text · 1 name · 2 value or null. Runs when the statement is prepared.
  static int Pragma(File* file, char** arguments) {
    if (sqlite3_stricmp(arguments[1], "delete_database") != 0) return SQLITE_NOTFOUND;
    bool writing;
    {
      const std::lock_guard guard(file->database->mutex_);
      writing = file->database->exclusive_[wal::kWriteLock] == file;
    }
    if (!writing) {
      arguments[0] = sqlite3_mprintf(
          "PRAGMA delete_database must be run in a write transaction. Use BEGIN IMMEDIATE to start one.");
      return SQLITE_ERROR;
    }
    file->delete_requested = true;
    return SQLITE_OK;
  }
  static int SectorSize(sqlite3_file*) { return kPageBytes; }
  static int DeviceCharacteristics(sqlite3_file*) {
    return SQLITE_IOCAP_ATOMIC | SQLITE_IOCAP_SAFE_APPEND | SQLITE_IOCAP_SEQUENTIAL | SQLITE_IOCAP_POWERSAFE_OVERWRITE |
           SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN;
  }
  static int ShmMap(sqlite3_file* file, int number, int bytes, int extend, void volatile** out) {
    assert(bytes == static_cast<int>(wal::kRegionBytes));
    (void)bytes;
    return DatabaseOf(file)->MapRegion(static_cast<uint32_t>(number), extend != 0, out);
  }
  static int ShmLock(sqlite3_file* file, int first, int count, int flags) {
    return DatabaseOf(file)->Lock(Cast(file), first, count, flags);
  }
  static void ShmBarrier(sqlite3_file*) { std::atomic_thread_fence(std::memory_order_seq_cst); }
  static int ShmUnmap(sqlite3_file* file, int) {
    DatabaseOf(file)->UnlockAll(Cast(file));
    return SQLITE_OK;
  }
};

namespace {

const sqlite3_io_methods kFileMethods = {
    2,
    VfsMethods::Close,
    VfsMethods::Read,
    VfsMethods::Write,
    VfsMethods::Truncate,
    VfsMethods::Sync,
    VfsMethods::FileSize,
    VfsMethods::LockFile,
    VfsMethods::LockFile,
    VfsMethods::CheckReservedLock,
    VfsMethods::FileControl,
    VfsMethods::SectorSize,
    VfsMethods::DeviceCharacteristics,
    VfsMethods::ShmMap,
    VfsMethods::ShmLock,
    VfsMethods::ShmBarrier,
    VfsMethods::ShmUnmap,
    nullptr,
    nullptr,
};

File* MainFileOf(sqlite3* db) {
  sqlite3_file* file = nullptr;
  sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &file);
  return reinterpret_cast<File*>(file);
}

}  // namespace

int VfsMethods::Open(sqlite3_vfs* methods, sqlite3_filename name, sqlite3_file* file, int flags, int* out_flags) {
  Vfs* self = Self(methods);
  file->pMethods = nullptr;
  // Sorters, VACUUM's copy, temporary tables: real files of the process, unlinked at once.
  if (name == nullptr) return self->unix_->xOpen(self->unix_, name, file, flags, out_flags);
  std::string_view path(name);
  const bool is_wal = (flags & SQLITE_OPEN_WAL) != 0;
  if (is_wal && EndsWith(path, "-wal")) path.remove_suffix(4);
  // Only a connection's own database may be opened, however a name came into an ATTACH.
  if (!is_wal && ((flags & SQLITE_OPEN_MAIN_DB) == 0 || self->connecting_ == nullptr)) return SQLITE_CANTOPEN;
  std::shared_ptr<Database> database = self->FindDatabase(path);
  if (database == nullptr) return SQLITE_CANTOPEN;
  new (file) File{{&kFileMethods}, std::move(database), is_wal, 0, false, false};
  if (out_flags != nullptr) *out_flags = flags;
  return SQLITE_OK;
}

Vfs::Vfs(const Options& options) : options_(options), unix_(sqlite3_vfs_find("unix")) {
  static std::atomic<uint64_t> instances{0};
  registered_name_ = "dqlite-" + std::to_string(++instances);
  methods_.iVersion = 2;
  methods_.szOsFile = std::max(static_cast<int>(sizeof(File)), unix_->szOsFile);
  methods_.mxPathname = 1024;
  methods_.zName = registered_name_.c_str();
  methods_.pAppData = this;
  methods_.xOpen = VfsMethods::Open;
  methods_.xDelete = VfsMethods::Delete;
  methods_.xAccess = VfsMethods::Access;
  methods_.xFullPathname = VfsMethods::FullPathname;
  methods_.xRandomness = VfsMethods::Randomness;
  methods_.xSleep = VfsMethods::Sleep;
  methods_.xCurrentTime = VfsMethods::CurrentTime;
  methods_.xGetLastError = VfsMethods::GetLastError;
  methods_.xCurrentTimeInt64 = VfsMethods::CurrentTimeInt64;
  if (sqlite3_vfs_register(&methods_, 0) != SQLITE_OK) throw std::bad_alloc();
}

Vfs::~Vfs() { sqlite3_vfs_unregister(&methods_); }

// client-protocol §7.3. SQLite gives a meaning to some names, and to a name with a suffix.
bool Vfs::IsName(std::string_view name) {
  return !name.empty() && name.size() < 512 && name.find('\0') == std::string_view::npos && name != ":memory:" &&
         name.substr(0, 5) != "file:" && !VfsMethods::EndsWith(name, "-wal") && !VfsMethods::EndsWith(name, "-journal");
}

std::shared_ptr<Slot> Vfs::Open(const std::string& name) {
  const std::lock_guard guard(mutex_);
  const auto found = by_name_.find(name);
  if (found != by_name_.end()) return found->second;
  auto slot = std::make_shared<Slot>(Slot{name, std::make_shared<Database>(name, options_)});
  slots_.push_back(slot);
  by_name_.emplace(name, slot);
  return slot;
}

std::shared_ptr<Slot> Vfs::Find(const std::string& name) const {
  const std::lock_guard guard(mutex_);
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

std::shared_ptr<Database> Vfs::FindDatabase(std::string_view name) const {
  const std::shared_ptr<Slot> slot = Find(std::string(name));
  return slot == nullptr ? nullptr : slot->database;
}

bool Vfs::Drop(const std::string& name) {
  const std::lock_guard guard(mutex_);
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return true;
  if (found->second->connections != 0) return false;
  std::erase(slots_, found->second);
  by_name_.erase(found);
  return true;
}

int Vfs::Connect(const Slot& slot, sqlite3** out) {
  connecting_ = &slot;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const int rc = sqlite3_open_v2(slot.name.c_str(), out, flags, registered_name_.c_str());
  connecting_ = nullptr;
  return rc;
}

bool Vfs::HoldsWriteLock(sqlite3* db) {
  const File* file = MainFileOf(db);
  if (file == nullptr) return false;
  const std::lock_guard guard(file->database->mutex_);
  return file->database->exclusive_[wal::kWriteLock] == file;
}

bool Vfs::TakeTooBig(sqlite3* db) {
  File* file = MainFileOf(db);
  if (file == nullptr || !file->too_big) return false;
  file->too_big = false;
  return true;
}

}  // namespace vfs
