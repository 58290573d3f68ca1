#include "io/safetensors_index.h"

#include <unordered_map>
#include <unordered_set>

#include "io/json.h"
#include "io/quote.h"
#include "io/safetensors.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {
namespace {

constexpr std::string_view kEnding = ".safetensors";

/// Why text cannot name a tensor or a file, or empty.
std::string text_problem(std::string_view name, size_t max_bytes) {
  if (name.empty()) return "an empty name";
  if (name.size() > max_bytes) return str_cat("a name of ", name.size(), " bytes");
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) return quote(name) + " with control characters";
  }
  return "";
}

/// Keeps the members of weight_map alone; whatever else the text has is counted in and out.
class IndexParser final : public JsonEvents {
 public:
  using JsonEvents::JsonEvents;

  SafetensorsIndex take() {
    if (!has_map_) throw Error(where(), "no weight_map", "one, from tensors to files");
    if (index_.tensors.empty()) throw Error(where() + ": weight_map", "no tensors", "one or more");
    return std::move(index_);
  }

  bool null() override { return value("null"); }
  bool boolean(bool given) override { return value(given ? "true" : "false"); }
  bool number_integer(int64_t given) override { return value(str_cat(given)); }
  bool number_unsigned(uint64_t given) override { return value(str_cat(given)); }
  bool number_float(double, const std::string& literal) override { return value(escaped(literal)); }

  bool string(std::string& given) override {
    if (!in_map()) return value("a string");
    add(given);
    return true;
  }

  bool start_object(size_t) override { return open("an object"); }
  bool start_array(size_t) override { return open("an array"); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    if (depth() == 1) {
      is_map_next_ = name == "weight_map";
      if (is_map_next_ && has_map_) throw Error(where(), "weight_map twice", "it once");
    } else if (in_map()) {
      tensor_ = std::move(name);
    }
    return true;
  }

 private:
  bool in_map() const { return map_is_open_ && depth() == 2; }
  std::string tensor_place() const { return where() + ": tensor " + quote(tensor_); }

  bool value(const std::string& given) const {
    if (in_map()) throw Error(tensor_place(), given, "the name of its file");
    if (depth() == 1 && is_map_next_) throw Error(where() + ": weight_map", given, "an object, from tensors to files");
    return true;
  }

  bool open(const char* what) {
    if (in_map()) throw Error(tensor_place(), what, "the name of its file");
    if (depth() == 1 && is_map_next_) {
      if (std::string_view(what) != "an object") value(what);
      map_is_open_ = has_map_ = true;
    }
    enter();
    return true;
  }

  bool close() {
    leave();
    if (depth() == 1) map_is_open_ = is_map_next_ = false;
    return true;
  }

  void add(const std::string& file) {
    const std::string problem = text_problem(tensor_, kMaxTensorNameBytes);
    if (!problem.empty())
      throw Error(where() + ": weight_map", problem, str_cat("1 to ", kMaxTensorNameBytes, " bytes"));
    if (index_.tensors.size() == kMaxTensors) throw Error(where(), "more tensors", str_cat("at most ", kMaxTensors));
    if (!names_.insert(tensor_).second) throw Error(tensor_place(), "the tensor twice", "it once");
    index_.tensors.emplace_back(tensor_, position_of(file));
  }

  uint32_t position_of(const std::string& file) {
    const auto known = positions_.find(file);
    if (known != positions_.end()) return known->second;
    const std::string problem = text_problem(file, kMaxFileNameBytes);
    if (!problem.empty() || !file.ends_with(kEnding) || file.size() == kEnding.size() || file.find('/') != file.npos ||
        file.find('\\') != file.npos) {
      throw Error(tensor_place(), "the file " + (problem.empty() ? quote(file) : problem),
                  "the name of a .safetensors file beside the index, without a folder");
    }
    if (index_.files.size() == kMaxIndexFiles) throw Error(where(), "more files", str_cat("at most ", kMaxIndexFiles));
    const auto position = static_cast<uint32_t>(index_.files.size());
    index_.files.push_back(file);
    positions_.emplace(file, position);
    return position;
  }

  SafetensorsIndex index_;
  std::string tensor_;  // whose file comes next
  std::unordered_set<std::string> names_;
  std::unordered_map<std::string, uint32_t> positions_;
  bool has_map_ = false;
  bool is_map_next_ = false;  // the value that comes next, or is open, is weight_map's
  bool map_is_open_ = false;
};

}  // namespace

SafetensorsIndex parse_safetensors_index(std::string_view text, const std::string& where) {
  IndexParser parser(text, where);
  parser.parse();
  return parser.take();
}

}  // namespace tessera::io
