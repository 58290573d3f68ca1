// Lets another thread end what this one is doing: long loops look at a flag of the thread that they work for.
//
//   const StopScope scope(&flag);  // until its end, threads of pools that this one runs included
//   pool.run(num_items, body);     // throws Stopped soon after another thread made the flag other than 0
//
// Nothing is undone: what a stopped call wrote stays as far as it came.
#pragma once

#include <cstdint>
#include <exception>

namespace tessera {

class Stopped : public std::exception {
 public:
  const char* what() const noexcept override { return "stopped by its caller"; }
};

/// The calling thread's flag; null where nothing stops it.
const int32_t* current_stop() noexcept;

/// Gives the calling thread a flag, or null, and takes it back at the end.
class StopScope {
 public:
  explicit StopScope(const int32_t* flag) noexcept;
  ~StopScope();
  StopScope(const StopScope&) = delete;
  StopScope& operator=(const StopScope&) = delete;

 private:
  const int32_t* previous_;
};

/// Throws Stopped if the calling thread's flag says so; costs two loads.
void throw_if_stopped();

}  // namespace tessera
