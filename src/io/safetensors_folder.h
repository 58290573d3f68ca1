// A checkpoint's tensors, in one safetensors file or in several with an index: all headers, read and compared at once.
//
//   const SafetensorsFolder folder("Qwen3-30B-A3B");
//   const StoredTensor* weight = folder.find("model.layers.0.mlp.gate.weight");
//   folder.read(*weight, 0, bytes);                                  // a pread straight into the caller's memory
//
// What is there must be exactly what is said: every file of the index exists and has the tensors the index says it has,
// no other, and no tensor lies in two. What is in a header of a safetensors file: safetensors.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "io/safetensors.h"

namespace tessera::io {

struct StoredTensor {
  TensorInfo info;
  uint32_t file = 0;

  uint64_t num_bytes() const { return info.end - info.begin; }
};

class SafetensorsFolder {
 public:
  /// Opens every file: model.safetensors, or those of model.safetensors.index.json. Throws Error naming file and
  /// tensor.
  explicit SafetensorsFolder(const std::filesystem::path& folder);

  /// Sorted by name.
  std::span<const StoredTensor> tensors() const { return tensors_; }
  /// Those whose names begin so.
  std::span<const StoredTensor> tensors_under(std::string_view prefix) const;
  const StoredTensor* find(std::string_view name) const;

  const std::string& name() const { return name_; }  ///< the folder, escaped for messages
  size_t num_files() const { return files_.size(); }
  uint64_t num_bytes() const;  ///< of all files
  /// "<file>: tensor '<name>'", as messages begin.
  std::string place(const StoredTensor& tensor) const;

  /// Fills `destination` from byte `offset` of a tensor. Throws Error naming file and tensor if the file ends before.
  void read(const StoredTensor& tensor, uint64_t offset, std::span<std::byte> destination) const;

 private:
  void add_file(const std::filesystem::path& path);
  void refuse_doubled() const;

  struct File {
    InputFile bytes;
    uint64_t data_begin;
  };
  std::string name_;
  std::vector<File> files_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace tessera::io
