// Threads that compute one step together: a body runs on all of them, and a barrier inside it costs less than a
// microsecond while nobody else wants the cores. Who waits spins a little and then sleeps, so that an idle engine
// uses no CPU and a crowded node is not made worse.
#pragma once

#include <stdint.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

// A number that only grows, and threads that wait until it does. They spin, then sleep in the kernel. std::atomic's
// wait would yield first: two threads that share a core yield to each other for seconds, both look busy to the kernel,
// and it leaves another core idle.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_relaxed); }
  void advance();
  void await_change(uint32_t old, int spins);

 private:
  alignas(64) std::atomic<uint32_t> value_{0};
  std::atomic<int> num_sleepers_{0};
};

// What a pool runs, borrowed from whoever asks: unlike a std::function it never takes memory, so no exception can
// leave a function that C calls.
class Body {
 public:
  template <class Callable>
  Body(const Callable& callable)  // NOLINT(google-explicit-constructor): a lambda is one
      : callable_(&callable),
        call_([](const void* body, int thread) { (*static_cast<const Callable*>(body))(thread); }) {}

  void operator()(int thread) const { call_(callable_, thread); }

 private:
  const void* callable_;
  void (*call_)(const void* body, int thread);
};

class Pool {
 public:
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return num_threads_; }

  // Run the body on every thread, the caller's included; returns when all have finished it.
  void run(const Body& body);

  // Wait, inside a body, until every thread of the pool has come here.
  void barrier();

 private:
  void work(int thread);
  void spread(int thread);
  void end();

  const int num_threads_;
  std::unique_ptr<std::atomic<int>[]> cores_;  // by thread: where it ran last
  const Body* body_ = nullptr;
  bool is_ending_ = false;
  Signal runs_;                                   // bodies given out so far
  alignas(64) std::atomic<uint32_t> arrived_{0};  // threads at the current barrier
  Signal barriers_;                               // barriers passed so far
  std::vector<std::thread> threads_;
};
