#include "runtime/cut_files.h"

#if defined(__unix__) || defined(__APPLE__)

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace hotset {
namespace {

// The handler reads these at any time. Of more mappings than there is room for, the oldest is forgotten; one
// that is no more does no harm, unless others than its file's pages fault there.
struct Mapping {
  std::atomic<uintptr_t> begin{0}, end{0};
};
constexpr size_t kMostMappings = 1024;
Mapping mappings[kMostMappings];
std::atomic<size_t> n_mappings{0};

void (*tell_of_it)() = nullptr;
std::atomic<bool> told{false};
uintptr_t page_bytes = 4096;
struct sigaction before;

// The rest of the file's mapping, all of it behind the file's end, becomes zeros. mmap is no function that a
// handler of signals may call by the letter of POSIX; it is a bare system call wherever this is compiled.
void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping& mapping : mappings) {
    if (address < mapping.begin || address >= mapping.end) continue;
    const uintptr_t page = address / page_bytes * page_bytes;
    void* zeros = mmap(reinterpret_cast<void*>(page), mapping.end - page, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (zeros == MAP_FAILED) break;
    if (!told.exchange(true)) tell_of_it();
    return;
  }
  sigaction(SIGBUS, &before, nullptr);  // the read is tried again, and is theirs
}

}  // namespace

void survive_cut_files(void (*tell)()) {
  if (tell_of_it) return;
  tell_of_it = tell;
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

void watch_mapping(const void* data, size_t bytes) {
  Mapping& mapping = mappings[n_mappings++ % kMostMappings];
  mapping.end = 0;
  mapping.begin = reinterpret_cast<uintptr_t>(data);
  mapping.end = mapping.begin + bytes;
}

}  // namespace hotset

#else

namespace hotset {

void survive_cut_files(void (*)()) {}
void watch_mapping(const void*, size_t) {}

}  // namespace hotset

#endif
