#include "runtime/memory.h"

#include <new>
#include <utility>

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace hotset {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Buffer::Buffer(size_t bytes, Pages pages) : size_(bytes) {
  if (bytes == 0) return;
#if defined(_WIN32)
  (void)pages;
  mapping_bytes_ = bytes;
  mapping_ = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (mapping_ == nullptr) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(mapping_);
#else
  const bool huge = pages == Pages::kHuge && bytes >= kHugePage;
  mapping_bytes_ = huge ? round_up(bytes, kHugePage) + kHugePage : bytes;
  if (mapping_bytes_ < bytes) throw std::bad_alloc();
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::bad_alloc();
  }
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<uint8_t*>(huge ? round_up(address, kHugePage) : address);
#if defined(__linux__)
  // Advice only: where it is refused, ordinary pages serve as well.
  if (huge) madvise(data_, round_up(bytes, kHugePage), MADV_HUGEPAGE);
  if (pages == Pages::kSmall) madvise(mapping_, mapping_bytes_, MADV_NOHUGEPAGE);
#endif
#endif
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (mapping_ == nullptr) return;
#if defined(_WIN32)
  VirtualFree(mapping_, 0, MEM_RELEASE);
#else
  munmap(mapping_, mapping_bytes_);
#endif
}

std::shared_ptr<uint8_t> SharedBuffers::allocate(size_t bytes) {
  bytes = round_up(bytes, 64);
  const std::lock_guard lock(mutex_);
  if (bytes > kBlockBytes / 4) {
    const auto own = std::make_shared<Buffer>(bytes, Pages::kHuge);
    return {own, own->data()};
  }
  if (!block_ || used_ + bytes > block_->size()) {
    block_ = std::make_shared<Buffer>(kBlockBytes, Pages::kHuge);
    used_ = 0;
  }
  uint8_t* piece = block_->data() + used_;
  used_ += bytes;
  return {block_, piece};
}

#if !defined(_WIN32)
namespace {

// Advice on the pages that lie in these bytes; with `around`, on those too that lie there in part.
void advise(const void* data, size_t bytes, int advice, bool around) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = around ? begin / page * page : round_up(begin, page);
  const uintptr_t last = around ? round_up(end, page) : end / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace
#endif

void release_file_pages(const void* data, size_t bytes) {
#if defined(__linux__)
  advise(data, bytes, MADV_DONTNEED, false);
#else
  (void)data;
  (void)bytes;
#endif
}

void fetch_file_pages(const void* data, size_t bytes) {
#if !defined(_WIN32)
  advise(data, bytes, MADV_WILLNEED, true);
#else
  (void)data;
  (void)bytes;
#endif
}

void release_pages(void* data, size_t bytes) {
#if defined(__linux__)
  advise(data, bytes, MADV_DONTNEED, false);
#elif !defined(_WIN32)
  advise(data, bytes, MADV_FREE, false);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace hotset
