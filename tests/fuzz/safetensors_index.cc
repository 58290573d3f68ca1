// Any bytes as the index of a checkpoint. It is refused with an Error that a terminal can show, or every tensor has one
// file, which is a plain name.
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "io/safetensors_index.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const io::SafetensorsIndex index = io::parse_safetensors_index(text, "f");
    std::set<std::string> names;
    std::set<uint32_t> used;
    for (const auto& [tensor, file] : index.tensors) {
      require(!tensor.empty() && names.insert(tensor).second && file < index.files.size());
      used.insert(file);
    }
    require(!names.empty() && used.size() == index.files.size());
    require(std::set<std::string>(index.files.begin(), index.files.end()).size() == index.files.size());
    for (const std::string& file : index.files) {
      require(file.ends_with(".safetensors") && file.find('/') == file.npos && file.size() <= io::kMaxFileNameBytes);
    }
  } catch (const Error& error) {
    const std::string message = error.what();
    require(message.starts_with("f: ") && message.size() < 2'000);
    require(utf8_first_invalid(message) == std::string::npos);
    for (const char c : message) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
  }
  return 0;
}
