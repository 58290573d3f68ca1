// The index of a checkpoint in several safetensors files: a JSON object whose "weight_map" says which file has a
// tensor.
//
//   const SafetensorsIndex index = parse_safetensors_index(text, "model.safetensors.index.json");
//   for (const auto& [tensor, file] : index.tensors) open(folder / index.files[file]);
//
// Trusts nothing: names of files are names in the index's own folder, of tensors what a safetensors header may hold,
// each once. Other members are read over. Format: https://huggingface.co/docs/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::io {

inline constexpr uint64_t kMaxIndexBytes = 100'000'000;  // as a header: it holds no more names
inline constexpr size_t kMaxIndexFiles = 4'096;
inline constexpr size_t kMaxFileNameBytes = 255;  // what file systems take

struct SafetensorsIndex {
  std::vector<std::string> files;                         ///< in the order in which they are first named
  std::vector<std::pair<std::string, uint32_t>> tensors;  ///< name, position in files; in the order of the text
};

/// `where` names the file in messages. Throws Error for everything that is not exactly right.
SafetensorsIndex parse_safetensors_index(std::string_view text, const std::string& where);

}  // namespace tessera::io
