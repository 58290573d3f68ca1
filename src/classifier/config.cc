#include "tessera/classifier/config.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/file.h"
#include "io/json.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

// What a checkpoint may ask for. Far beyond any model that fits a machine; they keep every product below 2^63.
constexpr int64_t kMaxSize = 1'048'576;
constexpr int64_t kMaxVocabulary = 16'777'216;
constexpr int64_t kMaxSequence = 16'777'216;
constexpr int64_t kMaxExperts = 4'096;
constexpr size_t kMaxWidths = 64;
constexpr size_t kMaxHeadLayers = 64;
constexpr int64_t kMaxTensorElements = int64_t{1} << 40;
constexpr int64_t kMaxFlops = int64_t{1} << 62;

constexpr const char* kFormat = "tessera-classifier";
constexpr int64_t kVersion = 1;
constexpr const char* kTokenizer = "basic_english";

std::string field(const std::string& where, const char* name) { return str_cat(where, ": '", name, "'"); }

void check_range(const std::string& place, int64_t value, int64_t min, int64_t max) {
  if (value < min || value > max) throw Error(place, str_cat(value), str_cat("an integer from ", min, " to ", max));
}

// The product of positive factors; Error if it exceeds `limit`.
int64_t checked_product(const std::string& place, std::initializer_list<int64_t> factors, int64_t limit) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product) || product > limit) {
      throw Error(place, "sizes whose product is too large", str_cat("a product of at most ", limit));
    }
  }
  return product;
}

void check_tensors(const ClassifierConfig& config, const std::string& where) {
  const std::string place = where + ": the sizes";
  const int64_t features = config.feature_size();
  checked_product(place, {config.vocab_size, config.embedding_size}, kMaxTensorElements);
  int64_t flops = 0;
  const auto add_flops = [&](std::initializer_list<int64_t> factors) {
    const int64_t more = checked_product(place, factors, kMaxFlops);
    if (more > kMaxFlops - flops) throw Error(place, "too much work for a sentence", str_cat("at most ", kMaxFlops));
    flops += more;
  };
  for (const int64_t width : config.filter_widths) {
    const int64_t elements =
        checked_product(place, {config.num_filters, config.embedding_size, width}, kMaxTensorElements);
    add_flops({2, elements, config.sequence_length - width + 1});
  }
  add_flops({2, features, config.num_experts});
  add_flops({2, checked_product(place, {features, config.expert_size}, kMaxTensorElements), config.num_experts});
  for (size_t i = 0; i < config.head_sizes.size(); ++i) add_flops({2, config.head_input_size(i), config.head_sizes[i]});
  add_flops({2, config.head_input_size(config.head_sizes.size()), config.num_classes});
}

void check_class_names(const ClassifierConfig& config, const std::string& where) {
  const std::string place = field(where, "class_names");
  if (config.class_names.size() != static_cast<size_t>(config.num_classes)) {
    throw Error(place, str_cat(config.class_names.size(), " names"), str_cat(config.num_classes, ", one a class"));
  }
  for (size_t i = 0; i < config.class_names.size(); ++i) {
    const std::string& name = config.class_names[i];
    if (name.empty()) throw Error(str_cat(place, " item ", i), "an empty name", "a name");
    const auto end = config.class_names.begin() + static_cast<std::ptrdiff_t>(i);
    if (std::find(config.class_names.begin(), end, name) != end) {
      throw Error(str_cat(place, " item ", i), "'" + escaped(name) + "' again", "every name once");
    }
  }
}

TextNormalization parse_normalization(const std::string& name, const std::string& place) {
  if (name == "none") return TextNormalization::none;
  if (name == "reviews") return TextNormalization::reviews;
  throw Error(place, "'" + escaped(name) + "'", "'none' or 'reviews'");
}

void require_value(const io::JsonReader& reader, const std::string& where, const char* key, const char* expected) {
  const std::string value = reader.require_string(key);
  if (value != expected) throw Error(field(where, key), "'" + escaped(value) + "'", str_cat("'", expected, "'"));
}

}  // namespace

int64_t ClassifierConfig::num_taps() const {
  return std::accumulate(filter_widths.begin(), filter_widths.end(), int64_t{0});
}

int64_t ClassifierConfig::max_filter_width() const {
  return filter_widths.empty() ? 0 : *std::max_element(filter_widths.begin(), filter_widths.end());
}

int64_t ClassifierConfig::flops_per_sentence() const {
  int64_t products = 0;
  for (const int64_t width : filter_widths) {
    products += (sequence_length - width + 1) * num_filters * embedding_size * width;
  }
  products += num_experts * feature_size();
  products += num_experts * expert_size * feature_size();
  for (size_t i = 0; i < head_sizes.size(); ++i) products += head_input_size(i) * head_sizes[i];
  products += head_input_size(head_sizes.size()) * num_classes;
  return 2 * products;
}

void ClassifierConfig::validate(const std::string& where) const {
  check_range(field(where, "vocab_size"), vocab_size, 1, kMaxVocabulary);
  check_range(field(where, "embedding_size"), embedding_size, 1, kMaxSize);
  check_range(field(where, "sequence_length"), sequence_length, 1, kMaxSequence);
  if (filter_widths.empty() || filter_widths.size() > kMaxWidths) {
    throw Error(field(where, "filter_widths"), str_cat(filter_widths.size(), " widths"), str_cat("1 to ", kMaxWidths));
  }
  for (size_t i = 0; i < filter_widths.size(); ++i) {
    if (filter_widths[i] < 1 || filter_widths[i] > sequence_length) {
      throw Error(str_cat(field(where, "filter_widths"), " item ", i), str_cat(filter_widths[i]),
                  str_cat("1 to the sequence_length of ", sequence_length));
    }
  }
  check_range(field(where, "num_filters"), num_filters, 1, kMaxSize);
  check_range(field(where, "num_experts"), num_experts, 1, kMaxExperts);
  check_range(field(where, "expert_size"), expert_size, 1, kMaxSize);
  if (head_sizes.size() > kMaxHeadLayers) {
    throw Error(field(where, "head_sizes"), str_cat(head_sizes.size(), " layers"), str_cat("at most ", kMaxHeadLayers));
  }
  for (size_t i = 0; i < head_sizes.size(); ++i) {
    check_range(str_cat(field(where, "head_sizes"), " item ", i), head_sizes[i], 1, kMaxSize);
  }
  check_range(field(where, "num_classes"), num_classes, 1, kMaxSize);
  check_range(field(where, "unknown_id"), unknown_id, 0, vocab_size - 1);
  check_range(field(where, "pad_id"), pad_id, 0, vocab_size - 1);
  check_class_names(*this, where);
  check_tensors(*this, where);
}

ClassifierConfig preset_config(const std::string& name) {
  ClassifierConfig config;
  config.num_classes = 2;
  config.class_names = {"negative", "positive"};
  if (name == "apws25") {
    config.vocab_size = 21'635;
    config.embedding_size = 4'096;
    config.sequence_length = 16;
    config.filter_widths = {3, 5, 7, 9};
    config.num_filters = 1'024;
    config.num_experts = 4;
    config.expert_size = 2'048;
    config.head_sizes = {1'024, 512};
  } else if (name == "small") {
    config.vocab_size = 100;
    config.embedding_size = 8;
    config.sequence_length = 16;
    config.filter_widths = {2, 3, 5};
    config.num_filters = 8;
    config.num_experts = 3;
    config.expert_size = 12;
    config.head_sizes = {10};
  } else {
    throw Error("preset", "'" + escaped(name) + "'", "'apws25' or 'small'");
  }
  return config;
}

ClassifierConfig load_config(const std::filesystem::path& path, std::vector<std::string>& warnings) {
  const std::string where = escaped(path.native());
  const nlohmann::json object = io::parse_json_object(io::read_text_file(path, io::kMaxConfigBytes), where);
  const io::JsonReader reader(object, where);
  require_value(reader, where, "format", kFormat);
  reader.require_int("version", kVersion, kVersion);
  require_value(reader, where, "tokenizer", kTokenizer);

  ClassifierConfig config;
  config.vocab_size = reader.require_int("vocab_size", 1, kMaxVocabulary);
  config.embedding_size = reader.require_int("embedding_size", 1, kMaxSize);
  config.sequence_length = reader.require_int("sequence_length", 1, kMaxSequence);
  config.filter_widths = reader.require_ints("filter_widths", 1, kMaxSequence, 1, kMaxWidths);
  config.num_filters = reader.require_int("num_filters", 1, kMaxSize);
  config.num_experts = reader.require_int("num_experts", 1, kMaxExperts);
  config.expert_size = reader.require_int("expert_size", 1, kMaxSize);
  config.head_sizes = reader.require_ints("head_sizes", 1, kMaxSize, 0, kMaxHeadLayers);
  config.num_classes = reader.require_int("num_classes", 1, kMaxSize);
  config.class_names = reader.require_strings("class_names");
  config.text_normalization =
      parse_normalization(reader.require_string("text_normalization"), field(where, "text_normalization"));
  config.unknown_id = static_cast<int32_t>(reader.require_int("unknown_id", 0, kMaxVocabulary - 1));
  config.pad_id = static_cast<int32_t>(reader.require_int("pad_id", 0, kMaxVocabulary - 1));
  config.validate(where);

  for (const std::string& key :
       reader.unknown_keys({"format", "version", "vocab_size", "embedding_size", "sequence_length", "filter_widths",
                            "num_filters", "num_experts", "expert_size", "head_sizes", "num_classes", "class_names",
                            "tokenizer", "text_normalization", "unknown_id", "pad_id"})) {
    warnings.push_back(str_cat(where, ": unknown key '", key, "' is ignored"));
  }
  return config;
}

std::string config_text(const ClassifierConfig& config) {
  nlohmann::ordered_json object;
  object["format"] = kFormat;
  object["version"] = kVersion;
  object["vocab_size"] = config.vocab_size;
  object["embedding_size"] = config.embedding_size;
  object["sequence_length"] = config.sequence_length;
  object["filter_widths"] = config.filter_widths;
  object["num_filters"] = config.num_filters;
  object["num_experts"] = config.num_experts;
  object["expert_size"] = config.expert_size;
  object["head_sizes"] = config.head_sizes;
  object["num_classes"] = config.num_classes;
  object["class_names"] = config.class_names;
  object["tokenizer"] = kTokenizer;
  object["text_normalization"] = config.text_normalization == TextNormalization::reviews ? "reviews" : "none";
  object["unknown_id"] = config.unknown_id;
  object["pad_id"] = config.pad_id;
  return object.dump(2) + "\n";
}

void save_config(const std::filesystem::path& path, const ClassifierConfig& config) {
  io::OutputFile file(path);
  file.write(config_text(config));
  file.commit();
}

}  // namespace tessera::classifier
