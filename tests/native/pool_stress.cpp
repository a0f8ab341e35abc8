// Stress test of the thread pool, run by test_thread_pool.py (also under ThreadSanitizer).
//   pool_stress random THREADS ROUNDS   random regions, now and then with chunks that their threads sleep in;
//   prints
//                                       how many results are wrong
//   pool_stress straggler THREADS MS    regions in which every other thread sleeps for MS milliseconds in its
//   chunk;
//                                       prints how many milliseconds the regions took
//   pool_stress overhead THREADS        prints a region's time on one thread, on all, and what it costs
//   beyond its
//                                       share of the work, in microseconds
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "runtime/thread_pool.h"

using namespace hotset;

namespace {

std::thread::id caller;

void sleep_unless_caller(int milliseconds) {
  if (std::this_thread::get_id() == caller) return;
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdu;
  return x ^ x >> 29;
}

// Chunk c: out[c] += a digest of the input, which the session's arena holds.
struct Job {
  const uint64_t* input;
  int64_t inputs;
  uint64_t* out;
  int64_t sleep_every;  // chunks; 0: never

  size_t scratch_bytes() const { return 4096; }

  void compute(int64_t chunk, void* scratch) const {
    uint64_t sum = static_cast<uint64_t>(chunk);
    for (int64_t i = 0; i < inputs; ++i) {
      if (i == inputs / 2 && sleep_every > 0 && chunk % sleep_every == 0) sleep_unless_caller(1 + chunk % 3);
      sum = mix(sum + input[i]);
    }
    std::memcpy(scratch, &sum, sizeof sum);
  }

  void commit(int64_t chunk, const void* scratch) const {
    uint64_t sum;
    std::memcpy(&sum, scratch, sizeof sum);
    out[chunk] += sum;
  }
};

int random_regions(int threads, int rounds) {
  std::mt19937_64 random(threads);
  ThreadPool pool(threads);
  int64_t wrong = 0;
  for (int round = 0; round < rounds; ++round) {
    Session session(pool);
    for (int regions = 1 + random() % 4; regions > 0; --regions) {
      const int64_t chunks = random() % 8 == 0 ? random() % 40000 : random() % 50;
      const int64_t inputs = 1 + random() % 200;
      auto* input = session.allocate<uint64_t>(inputs);
      for (int64_t i = 0; i < inputs; ++i) input[i] = random();
      std::vector<uint64_t> out(chunks, 7);
      const Job job{input, inputs, out.data(), random() % 4 == 0 ? 1 + static_cast<int64_t>(chunks / 8) : 0};
      session.run(chunks, job);
      for (int64_t chunk = 0; chunk < chunks; chunk += 1 + chunks / 1000) {
        uint64_t sum = static_cast<uint64_t>(chunk);
        for (int64_t i = 0; i < inputs; ++i) sum = mix(sum + input[i]);
        wrong += out[chunk] != 7 + sum;
      }
    }
    if (random() % 64 == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // lets the workers sleep
  }
  pool.quiesce();
  std::printf("%lld\n", static_cast<long long>(wrong));
  return wrong != 0;
}

struct SleepingJob {
  int milliseconds;
  int* committed;
  size_t scratch_bytes() const { return 64; }
  void compute(int64_t, void*) const {
    sleep_unless_caller(milliseconds);
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    while (std::chrono::steady_clock::now() < end) {
    }
  }
  void commit(int64_t chunk, const void*) const { ++committed[chunk]; }
};

int stragglers(int threads, int milliseconds) {
  ThreadPool pool(threads);
  const auto start = std::chrono::steady_clock::now();
  for (int region = 0; region < 100; ++region) {
    std::vector<int> committed(64);
    Session(pool).run(64, SleepingJob{milliseconds, committed.data()});
    for (int count : committed) {
      if (count != 1) return 1;
    }
  }
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  std::printf("%.1f\n", elapsed.count());
  return 0;
}

// Some microseconds of arithmetic.
struct WorkJob {
  int64_t steps;
  uint64_t* out;
  size_t scratch_bytes() const { return sizeof(uint64_t); }
  void compute(int64_t chunk, void* scratch) const {
    uint64_t x = static_cast<uint64_t>(chunk);
    for (int64_t i = 0; i < steps; ++i) x = mix(x);
    *static_cast<uint64_t*>(scratch) = x;
  }
  void commit(int64_t chunk, void* scratch) const { out[chunk] = *static_cast<uint64_t*>(scratch); }
};

// What a region costs beyond its share of the work, in microseconds: the median.
int overhead(int threads) {
  constexpr int kChunks = 16, kRegions = 2000;
  const auto time_regions = [](int n, std::vector<double>& times) {
    ThreadPool pool(n);
    uint64_t out[kChunks];
    for (int i = 0; i < kRegions; ++i) {
      Session session(pool);
      const auto start = std::chrono::steady_clock::now();
      session.run(kChunks, WorkJob{300, out});
      const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - start;
      times.push_back(elapsed.count());
    }
    std::nth_element(times.begin(), times.begin() + kRegions / 2, times.end());
    return times[kRegions / 2];
  };
  std::vector<double> serial, parallel;
  const double alone = time_regions(1, serial), together = time_regions(threads, parallel);
  std::printf("%.3f %.3f overhead %.3f\n", alone, together, together - alone / threads);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  caller = std::this_thread::get_id();
  const int threads = argc > 2 ? std::atoi(argv[2]) : 2;
  if (argc > 3 && std::strcmp(argv[1], "random") == 0) return random_regions(threads, std::atoi(argv[3]));
  if (argc > 3 && std::strcmp(argv[1], "straggler") == 0) return stragglers(threads, std::atoi(argv[3]));
  if (argc > 2 && std::strcmp(argv[1], "overhead") == 0) return overhead(threads);
  return 2;
}
