// Threads that compute one step together: a body runs on all of them, and a barrier inside it costs less than a
// microsecond while nobody else wants the cores. Who waits spins a little and then sleeps, so that an idle engine
// uses no CPU and a crowded node is not made worse.
#pragma once

#include <stdint.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

class Pool {
 public:
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return num_threads_; }

  // Run the body on every thread, the caller's included; returns when all have finished it.
  void run(const std::function<void(int thread)>& body);

  // Wait, inside a body, until every thread of the pool has come here.
  void barrier();

 private:
  void work(int thread);
  void end();

  const int num_threads_;
  const std::function<void(int)>* body_ = nullptr;
  bool is_ending_ = false;
  alignas(64) std::atomic<uint32_t> runs_{0};      // bodies given out so far
  alignas(64) std::atomic<uint32_t> arrived_{0};   // threads at the current barrier
  alignas(64) std::atomic<uint32_t> barriers_{0};  // barriers passed so far
  std::vector<std::thread> threads_;
};
