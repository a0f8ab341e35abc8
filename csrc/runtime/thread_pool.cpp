#include "runtime/thread_pool.h"

#include <algorithm>
#include <chrono>

#include "runtime/pause.h"

namespace hotset {
namespace {

using Clock = std::chrono::steady_clock;

// How long an idle thread looks for work before it sleeps: longer than the serial parts between regions, of
// which the longest lies between tokens, where weights have pushed all else out of the caches.
constexpr auto kSpinTime = std::chrono::microseconds(250);

// How long it stays awake within a step that asks for it: longer than another device's part of a layer.
constexpr auto kAwakeTime = std::chrono::milliseconds(2);

// The least time for which chunks held by others are waited for.
constexpr auto kMinGrace = std::chrono::nanoseconds(1000);

constexpr int kSpinsPerLook = 32;  // between looks at the clock

// Takes the next chunk of a lane's range, which ends at `end`; -1 when none is left or the region is over.
int64_t claim(std::atomic<uint64_t>& next, uint64_t epoch, int64_t end, int chunk_bits) {
  uint64_t value = next.load(std::memory_order_relaxed);
  for (;;) {
    const auto chunk = static_cast<int64_t>(value & ((uint64_t{1} << chunk_bits) - 1));
    if (value >> chunk_bits != epoch || chunk >= end) return -1;
    if (next.compare_exchange_weak(value, value + 1, std::memory_order_relaxed)) return chunk;
  }
}

}  // namespace

void* Arena::allocate(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (blocks_.empty() || bytes > blocks_.back().size() - used_) {
    blocks_.emplace_back(std::max(bytes, kBlockBytes), Pages::kHuge);
    used_ = 0;
  }
  void* piece = blocks_.back().data() + used_;
  used_ += bytes;
  return piece;
}

void Arena::reset() {
  if (blocks_.size() > 1) {
    size_t bytes = 0;
    for (const Buffer& block : blocks_) bytes += block.size();
    blocks_.clear();
    blocks_.emplace_back(bytes, Pages::kHuge);
  }
  used_ = 0;
}

ThreadPool::ThreadPool(int threads)
    : n_lanes_(threads),
      lanes_(new Lane[threads]),
      states_(new std::atomic<uint64_t>[kMaxChunks]()),
      // As many as threads means that one is always free; a few are nearly as good and cost less memory.
      arenas_(std::min(threads, kMaxArenas)) {
  try {
    for (int i = 1; i < threads; ++i) lanes_[i].thread = std::thread([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1);
  wakeups_.fetch_add(1);
  wakeups_.notify_all();
  for (int i = 1; i < n_lanes_; ++i) {
    if (lanes_[i].thread.joinable()) lanes_[i].thread.join();
  }
}

void ThreadPool::quiesce() {
  const std::lock_guard lock(mutex_);
  await_readers();
}

// The hazard-pointer protocol: once current_ is cleared, a thread that is not seen reading here will find it
// cleared.
void ThreadPool::await_readers() {
  current_.store(0);
  for (int i = 1; i < n_lanes_; ++i) {
    while (lanes_[i].reading.load() != 0) std::this_thread::yield();
  }
}

int ThreadPool::free_arena() {
  current_.store(0);
  for (int spins = 0;; ++spins) {
    uint32_t taken = 0;
    for (int i = 1; i < n_lanes_; ++i) {
      const uintptr_t reading = lanes_[i].reading.load();
      if (reading != 0) taken |= 1u << (reading % kLine);
    }
    // The first is worth a moment's wait: it is in the caches, and the others take memory once they are used.
    const size_t candidates = spins < kSpinsPerLook ? 1 : arenas_.size();
    for (size_t arena = 0; arena < candidates; ++arena) {
      if ((taken >> arena & 1) == 0) return static_cast<int>(arena);
    }
    if (spins < kSpinsPerLook) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::reserve_scratch(size_t bytes) {
  await_readers();
  for (int i = 0; i < n_lanes_; ++i) lanes_[i].scratch = Buffer(bytes, Pages::kHuge);
  scratch_bytes_ = bytes;
}

bool ThreadPool::execute(const Region& region, int64_t chunk, void* scratch) {
  std::atomic<uint64_t>& state = state_of(chunk);
  const uint64_t committing = region.epoch * 2;
  if (state.load(std::memory_order_relaxed) >= committing) return false;
  region.compute(region.job, region.first_chunk + chunk, scratch);
  uint64_t seen = state.load(std::memory_order_relaxed);
  if (seen >= committing) return false;
  if (!state.compare_exchange_strong(seen, committing, std::memory_order_acquire)) return false;
  region.commit(region.job, region.first_chunk + chunk, scratch);
  state.store(committing + 1, std::memory_order_release);
  return true;
}

// Takes chunks until none is left, of its own range first; returns how many it committed.
int64_t ThreadPool::work_on(const Region& region, int index) {
  Lane& own = lanes_[index];
  int64_t committed = 0;
  for (int i = 0; i < n_lanes_; ++i) {
    const int owner = index + i < n_lanes_ ? index + i : index + i - n_lanes_;
    const int64_t end = region.n_chunks * (owner + 1) / n_lanes_;
    for (;;) {
      const int64_t chunk = claim(lanes_[owner].next, region.epoch, end, kChunkBits);
      if (chunk < 0) break;
      if (!execute(region, chunk, own.scratch.data())) continue;
      ++committed;
      own.done.store(region.epoch << kChunkBits | static_cast<uint64_t>(committed),
                     std::memory_order_release);
    }
  }
  return committed;
}

bool ThreadPool::complete(const Region& region, int64_t own) const {
  int64_t committed = own;
  for (int i = 1; i < n_lanes_; ++i) {
    const uint64_t done = lanes_[i].done.load(std::memory_order_acquire);
    if (done >> kChunkBits == region.epoch) committed += done & ((uint64_t{1} << kChunkBits) - 1);
  }
  return committed == region.n_chunks;
}

void ThreadPool::run(Region* region, int arena) {
  const auto start = Clock::now();
  region->epoch = epoch_.load(std::memory_order_relaxed) + 1;
  for (int i = 0; i < n_lanes_; ++i) {
    const auto begin = static_cast<uint64_t>(region->n_chunks * i / n_lanes_);
    lanes_[i].next.store(region->epoch << kChunkBits | begin, std::memory_order_relaxed);
  }
  current_.store(reinterpret_cast<uintptr_t>(region) | static_cast<uintptr_t>(arena));
  epoch_.store(region->epoch);
  if (sleeping_.load() && sleeping_.exchange(false)) {
    wakeups_.fetch_add(1);
    wakeups_.notify_all();
  }

  const int64_t own = work_on(*region, 0);
  if (complete(*region, own)) return;

  // The others get about as long as two chunks take; then those that are still open are computed here as
  // well.
  const auto now = Clock::now();
  const auto deadline =
      now + std::max<Clock::duration>(kMinGrace, (now - start) * 2 / std::max<int64_t>(own, 1));
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (complete(*region, own)) return;
      pause();
    }
  } while (Clock::now() < deadline);
  for (int64_t chunk = 0; chunk < region->n_chunks; ++chunk) {
    execute(*region, chunk, lanes_[0].scratch.data());
  }
  for (int64_t chunk = 0; chunk < region->n_chunks; ++chunk) {
    // Open to no one any more, so at worst this waits for a commit.
    for (int spins = 0; state_of(chunk).load(std::memory_order_acquire) != region->epoch * 2 + 1; ++spins) {
      if (spins < 100) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
}

void ThreadPool::work(int index) {
  Lane& lane = lanes_[index];
  uint64_t seen = 0;
  while (wait_for_region(seen)) {
    const uintptr_t tagged = current_.load();
    lane.reading.store(tagged);
    if (tagged != 0 && current_.load() == tagged) {
      work_on(*reinterpret_cast<const Region*>(tagged / kLine * kLine), index);
    }
    lane.reading.store(0, std::memory_order_release);
  }
}

// Returns once a region later than `seen` was started, or false when the pool is being destroyed.
bool ThreadPool::wait_for_region(uint64_t& seen) {
  const auto start = Clock::now();
  for (;;) {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      const uint64_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen) {
        seen = epoch;
        return !stop_.load(std::memory_order_relaxed);
      }
      pause();
    }
    const auto waited = Clock::now() - start;
    if (waited < kSpinTime) continue;
    if (waited < kAwakeTime && awake_.load(std::memory_order_relaxed) > 0) {
      std::this_thread::yield();
      continue;
    }
    const uint32_t wakeups = wakeups_.load();
    sleeping_.store(true);
    if (epoch_.load() == seen) wakeups_.wait(wakeups);
  }
}

Session::Session(ThreadPool& pool) : pool_(pool), lock_(pool.mutex_), arena_index_(pool.free_arena()) {
  arena_ = &pool.arenas_[arena_index_];
  arena_->reset();
}

}  // namespace hotset
