// What lives from step to step beside the model: the threads, and memory for the rows of a step, which grows to
// what the largest step has needed and is then used again.
#pragma once

#include <stddef.h>

#include <memory>
#include <new>
#include <stdexcept>

#include "pool.h"

class Arena {
 public:
  // Begin a step that takes at most `bytes` in all; what was taken before is invalid from here on.
  void reset(size_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    data_.reset();
    size_ = 0;  // also if the next line throws
    data_.reset(static_cast<char*>(::operator new[](bytes, std::align_val_t(kAlignment))));
    size_ = bytes;
  }

  void* take(size_t bytes) {
    void* start = data_.get() + used_;
    used_ += aligned(bytes);
    return start;
  }

  static size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(char* p) const { ::operator delete[](p, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<char[], Free> data_;
  size_t size_ = 0;
  size_t used_ = 0;
};

// Run what may allocate for somebody who knows no exceptions: true unless there was too little memory.
template <class Body>
bool has_memory_for(const Body& body) {
  try {
    body();
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  } catch (const std::length_error&) {  // a vector that no address space could hold
    return false;
  }
}

struct StokerContext {
  explicit StokerContext(int num_threads) : pool(num_threads) {}
  Pool pool;
  Arena arena;
};
