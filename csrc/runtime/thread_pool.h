// A persistent pool of threads that never waits for a thread which is not running.
//
// A parallel region is cut into chunks. A chunk's `compute` writes to its thread's scratch memory only; its
// `commit` then copies the result out. When the calling thread finds no chunk left while others still hold
// some, for longer than chunks take, it computes these again itself: whoever comes first to a chunk commits
// it, the other's result is dropped. So a thread whose core was taken by another program delays nobody,
// unless that happened within a commit.
//
// Such a straggler may go on reading a region's inputs after the region has ended. Therefore they live where
// nothing overwrites them meanwhile: in the session's arena, which is reused only after every thread has left
// it, or in memory whose owner calls quiesce() before it changes or frees it (weights, key-value caches).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "runtime/memory.h"

namespace hotset {

// Memory handed out piece by piece and taken back all at once.
class Arena {
 public:
  void* allocate(size_t bytes);  // 64-byte aligned; throws std::bad_alloc
  void reset();

 private:
  static constexpr size_t kBlockBytes = size_t{4} << 20;

  std::vector<Buffer> blocks_;
  size_t used_ = 0;  // of the last block
};

class ThreadPool {
 public:
  // `threads` counts the thread that calls run(). Throws std::system_error where the system refuses threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return n_lanes_; }

  // Waits until no thread reads or writes anything of any earlier region. Not within a session.
  void quiesce();

  // Until as many calls with false, idle threads do not sleep but let others run in turn: for steps that wait
  // for another device between regions.
  void stay_awake(bool on) { awake_.fetch_add(on ? 1 : -1, std::memory_order_relaxed); }

 private:
  friend class Session;

  // A region takes at most this many chunks; run() makes several regions of more.
  static constexpr int64_t kMaxChunks = 1 << 14;
  static constexpr int kChunkBits = 16;
  static constexpr int kMaxArenas = 4;
  static constexpr size_t kLine = 64;

  struct Region {
    void (*compute)(const void* job, int64_t chunk, void* scratch);
    void (*commit)(const void* job, int64_t chunk, void* scratch);
    const void* job;
    int64_t first_chunk, n_chunks;
    uint64_t epoch;
  };

  // What belongs to one thread; lane 0 is the calling thread's. Every lane owns a range of each region's
  // chunks and, when that is used up, takes from the others'.
  struct Lane {
    alignas(kLine) std::atomic<uint64_t> next{0};  // epoch << kChunkBits | next chunk of this lane's range
    alignas(kLine) std::atomic<uint64_t> done{0};  // epoch << kChunkBits | chunks committed by this thread
    alignas(kLine) std::atomic<uintptr_t> reading{0};  // the region being read (as in current_) or 0
    Buffer scratch;
    std::thread thread;
  };

  // Neighbours' states lie in lines of their own, so that threads do not wait for one another's.
  std::atomic<uint64_t>& state_of(int64_t chunk) const {
    constexpr int64_t kInLine = kLine / sizeof(uint64_t), kLines = kMaxChunks / kInLine;
    return states_[chunk % kLines * kInLine + chunk / kLines];
  }

  void run(Region* region, int arena);
  void work(int index);
  void stop();
  bool wait_for_region(uint64_t& seen);
  int64_t work_on(const Region& region, int index);
  bool execute(const Region& region, int64_t chunk, void* scratch);
  bool complete(const Region& region, int64_t own) const;
  void await_readers();
  int free_arena();
  void reserve_scratch(size_t bytes);

  int n_lanes_;
  std::unique_ptr<Lane[]> lanes_;
  std::unique_ptr<std::atomic<uint64_t>[]> states_;  // of chunks: below 2 epoch open, = committing, + 1 done
  std::vector<Arena> arenas_;
  std::mutex mutex_;  // held by a session
  size_t scratch_bytes_ = 0;

  alignas(kLine) std::atomic<uint64_t> epoch_{0};
  std::atomic<uintptr_t> current_{0};  // the region's address | its arena's index
  alignas(kLine) std::atomic<bool> sleeping_{false};
  std::atomic<uint32_t> wakeups_{0};
  std::atomic<int> awake_{0};
  std::atomic<bool> stop_{false};
};

// One call's use of the pool: the regions it runs and the memory that they read. One at a time; others wait.
class Session {
 public:
  explicit Session(ThreadPool& pool);

  // Uninitialised memory until the session ends. Write it before the regions that read it, not after.
  template <class T>
  T* allocate(int64_t count) {
    static_assert(std::is_trivially_destructible_v<T>);
    return static_cast<T*>(arena_->allocate(static_cast<size_t>(count) * sizeof(T)));
  }

  // Runs job.compute(chunk, scratch), then job.commit(chunk, scratch), for every chunk in [0, n_chunks), and
  // returns when all are committed. A chunk may be computed twice but is committed once. `job` is copied;
  // scratch has job.scratch_bytes() bytes.
  template <class Job>
  void run(int64_t n_chunks, const Job& job) {
    static_assert(std::is_trivially_copyable_v<Job>);
    if (job.scratch_bytes() > pool_.scratch_bytes_) pool_.reserve_scratch(job.scratch_bytes());
    if (n_chunks <= 1 || pool_.threads() == 1) return run_here(n_chunks, job);
    const Job* copy = new (allocate<Job>(1)) Job(job);
    for (int64_t first = 0; first < n_chunks; first += ThreadPool::kMaxChunks) {
      auto* region = new (allocate<ThreadPool::Region>(1)) ThreadPool::Region;
      region->compute = [](const void* job, int64_t chunk, void* scratch) {
        static_cast<const Job*>(job)->compute(chunk, scratch);
      };
      region->commit = [](const void* job, int64_t chunk, void* scratch) {
        static_cast<const Job*>(job)->commit(chunk, scratch);
      };
      region->job = copy;
      region->first_chunk = first;
      region->n_chunks = std::min(n_chunks - first, ThreadPool::kMaxChunks);
      pool_.run(region, arena_index_);
    }
  }

  // The same on the calling thread alone, for work too small to share.
  template <class Job>
  void run_here(int64_t n_chunks, const Job& job) {
    if (job.scratch_bytes() > pool_.scratch_bytes_) pool_.reserve_scratch(job.scratch_bytes());
    void* scratch = pool_.lanes_[0].scratch.data();
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
      job.compute(chunk, scratch);
      job.commit(chunk, scratch);
    }
  }

  // Waits until no thread reads or writes anything of the regions so far.
  void await_readers() { pool_.await_readers(); }

  int threads() const { return pool_.threads(); }

 private:
  ThreadPool& pool_;
  std::lock_guard<std::mutex> lock_;
  int arena_index_;
  Arena* arena_;
};

}  // namespace hotset
