#include "io/safetensors_folder.h"

#include <algorithm>
#include <utility>

#include "io/quote.h"
#include "io/safetensors_index.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool before(const StoredTensor& a, const StoredTensor& b) {
  return std::pair<std::string_view, uint32_t>(a.info.name, a.file) <
         std::pair<std::string_view, uint32_t>(b.info.name, b.file);
}

/// Both lists sorted by name: what one has and the other lacks is named.
void require_index(const SafetensorsFolder& folder, SafetensorsIndex index, const std::string& where) {
  std::sort(index.tensors.begin(), index.tensors.end());
  const auto tensors = folder.tensors();
  size_t i = 0;
  for (const auto& [name, file] : index.tensors) {
    if (i < tensors.size() && tensors[i].info.name < name) break;
    const std::string said = where + ": tensor " + quote(name);
    if (i == tensors.size() || tensors[i].info.name != name)
      throw Error(said, "no such tensor in any file", "it in " + quote(index.files[file]));
    if (tensors[i].file != file) {
      throw Error(said, "it in " + quote(index.files[tensors[i].file]), "it in " + quote(index.files[file]));
    }
    ++i;
  }
  if (i < tensors.size())
    throw Error(folder.place(tensors[i]), "a tensor that is not in the index", "only those of it");
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(const fs::path& folder) : name_(escaped(folder.native())) {
  std::error_code error;
  const bool has_index = fs::exists(folder / kIndexFile, error), has_file = fs::exists(folder / kSingleFile, error);
  if (has_index && has_file) {
    throw Error(name_, str_cat("both ", kSingleFile, " and ", kIndexFile),
                "one of them: the weights would be there twice");
  }
  if (!has_index && !has_file) throw Error(name_, "no weights", str_cat(kSingleFile, " or ", kIndexFile));
  if (has_file) {
    add_file(folder / kSingleFile);
    std::sort(tensors_.begin(), tensors_.end(), before);
    return;
  }
  const std::string where = escaped((folder / kIndexFile).native());
  SafetensorsIndex index = parse_safetensors_index(read_text_file(folder / kIndexFile, kMaxIndexBytes), where);
  for (const std::string& file : index.files) {
    if (!fs::exists(folder / file, error))
      throw Error(where, "the file " + quote(file) + ", which is not there", "its files");
    add_file(folder / file);
  }
  std::sort(tensors_.begin(), tensors_.end(), before);
  refuse_doubled();
  require_index(*this, std::move(index), where);
}

void SafetensorsFolder::add_file(const fs::path& path) {
  const auto file = static_cast<uint32_t>(files_.size());
  InputFile bytes(path);
  uint64_t data_bytes = 0;
  {
    const SafetensorsFile header(path);
    for (const TensorInfo& info : header.tensors()) tensors_.push_back({info, file});
    // Tensors cover the data without gap: the end of the last one is the size of it.
    if (!header.tensors().empty()) data_bytes = header.tensors().back().end;
  }
  if (bytes.size() < data_bytes) throw Error(bytes.name(), "a file that shrinks while it is read", "one that stays");
  const uint64_t data_begin = bytes.size() - data_bytes;
  files_.push_back({std::move(bytes), data_begin});
}

void SafetensorsFolder::refuse_doubled() const {
  const auto same = [](const StoredTensor& a, const StoredTensor& b) { return a.info.name == b.info.name; };
  const auto doubled = std::adjacent_find(tensors_.begin(), tensors_.end(), same);
  if (doubled == tensors_.end()) return;
  throw Error(place(*(doubled + 1)), "the tensor a second time: it is in " + files_[doubled->file].bytes.name(),
              "it once");
}

std::span<const StoredTensor> SafetensorsFolder::tensors_under(std::string_view prefix) const {
  const auto begin = std::lower_bound(tensors_.begin(), tensors_.end(), prefix,
                                      [](const StoredTensor& t, std::string_view p) { return t.info.name < p; });
  const auto end =
      std::find_if(begin, tensors_.end(), [&](const StoredTensor& t) { return !t.info.name.starts_with(prefix); });
  return {begin, end};
}

const StoredTensor* SafetensorsFolder::find(std::string_view name) const {
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                      [](const StoredTensor& t, std::string_view n) { return t.info.name < n; });
  return found != tensors_.end() && found->info.name == name ? &*found : nullptr;
}

uint64_t SafetensorsFolder::num_bytes() const {
  uint64_t bytes = 0;
  for (const File& file : files_) bytes += file.bytes.size();
  return bytes;
}

std::string SafetensorsFolder::place(const StoredTensor& tensor) const {
  return files_[tensor.file].bytes.name() + ": tensor " + quote(tensor.info.name);
}

void SafetensorsFolder::read(const StoredTensor& tensor, uint64_t offset, std::span<std::byte> destination) const {
  TESSERA_CHECK(offset <= tensor.num_bytes() && destination.size() <= tensor.num_bytes() - offset, tensor.info.name);
  const File& file = files_[tensor.file];
  try {
    file.bytes.read_at(file.data_begin + tensor.info.begin + offset, destination);
  } catch (const Error& error) {
    throw Error(place(tensor), error.what());
  }
}

}  // namespace tessera::io
