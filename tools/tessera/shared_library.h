// A shared library that may or may not be on this machine, found at run time: cuBLASLt, NVML.
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <memory>
#include <string>

namespace tessera::cli {

/// Stays loaded until the program ends: CUDA's libraries leave handlers behind that run then.
class SharedLibrary {
 public:
  /// The first of `names` that the dynamic linker finds (its own paths and LD_LIBRARY_PATH); is_open() tells.
  explicit SharedLibrary(std::initializer_list<const char*> names) {
    for (const char* name : names) {
      if (handle_) break;
      handle_.reset(dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE));
      name_ = handle_ ? name : name_ + (name_.empty() ? "" : ", ") + name;
    }
  }

  bool is_open() const { return handle_ != nullptr; }
  /// Of the library that was found, or of all that were not.
  const std::string& name() const { return name_; }

  /// Sets `function` to the symbol; false if there is none, or no library.
  template <class Function>
  bool load(Function*& function, const char* symbol) const {
    function = handle_ ? reinterpret_cast<Function*>(dlsym(handle_.get(), symbol)) : nullptr;
    return function != nullptr;
  }

 private:
  struct Close {
    void operator()(void* handle) const { dlclose(handle); }
  };
  std::unique_ptr<void, Close> handle_;
  std::string name_;
};

}  // namespace tessera::cli
