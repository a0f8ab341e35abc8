// Large buffers on 2 MB pages where the system gives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

namespace hotset {

enum class Pages { kHuge, kSmall };

// Zeroed memory, 64-byte aligned, resident only where touched. With kHuge it is backed by 2 MB pages as far
// as the system gives them, with kSmall never. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, Pages pages);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;  // inside the mapping, at a page boundary
  size_t size_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
};

// Hands out pieces of large buffers, so that small matrices share 2 MB pages. A piece keeps its buffer alive.
class SharedBuffers {
 public:
  // 64-byte aligned and zeroed. Throws std::bad_alloc.
  std::shared_ptr<uint8_t> allocate(size_t bytes);

 private:
  static constexpr size_t kBlockBytes = size_t{64} << 20;

  std::mutex mutex_;
  std::shared_ptr<Buffer> block_;
  size_t used_ = 0;
};

// Tells the system that these bytes of a read-only file mapping are not needed any more, so that they do not
// count as resident; they are read again from the file when touched. Does nothing where the system has no
// such call.
void release_file_pages(const void* data, size_t bytes);

// Asks the system to read these bytes of a file mapping ahead.
void fetch_file_pages(const void* data, size_t bytes);

// Gives back the pages of a buffer that lie in these bytes, which hold nothing from now on.
void release_pages(void* data, size_t bytes);

}  // namespace hotset
