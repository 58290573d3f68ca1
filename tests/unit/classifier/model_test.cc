#include "tessera/classifier/model.h"

#include <gtest/gtest.h>

#include <limits>

#include "io/safetensors.h"
#include "random_model.h"
#include "tessera/core/error.h"
#include "unit/io/io_test_util.h"
#include "unit/numeric_check.h"

namespace tessera::classifier {
namespace {

using tessera::testing::error_of;
using tessera::testing::read_file;
using tessera::testing::TempDir;
using tessera::testing::write_file;
using testing::numbered_words;
using testing::odd_config;
using testing::random_model;

std::vector<std::string> names_of(const ClassifierConfig& config) {
  ModelWeights weights;
  std::vector<std::string> names;
  for (const TensorSpec& spec : tensor_specs(config, weights)) names.push_back(spec.name);
  return names;
}

TEST(TensorSpecs, NamesAndShapes) {
  ClassifierConfig config = odd_config();
  EXPECT_EQ(names_of(config),
            (std::vector<std::string>{"embedding.weight", "conv.0.weight",    "conv.0.bias",    "conv.1.weight",
                                      "conv.1.bias",      "conv.2.weight",    "conv.2.bias",    "router.weight",
                                      "router.bias",      "experts.0.weight", "experts.0.bias", "experts.1.weight",
                                      "experts.1.bias",   "experts.2.weight", "experts.2.bias", "head.0.weight",
                                      "head.0.bias",      "head.1.weight",    "head.1.bias",    "output.weight",
                                      "output.bias"}));
  ModelWeights weights;
  const auto specs = tensor_specs(config, weights);
  const auto shape_of = [&](const std::string& name) {
    for (const TensorSpec& spec : specs) {
      if (spec.name == name) return spec.shape;
    }
    return std::vector<int64_t>();
  };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape_of("embedding.weight"), (Shape{29, 7}));
  EXPECT_EQ(shape_of("conv.1.weight"), (Shape{5, 7, 6}));
  EXPECT_EQ(shape_of("conv.1.bias"), (Shape{5}));
  EXPECT_EQ(shape_of("router.weight"), (Shape{3, 15}));
  EXPECT_EQ(shape_of("experts.2.weight"), (Shape{11, 15}));
  EXPECT_EQ(shape_of("head.1.weight"), (Shape{4, 9}));
  EXPECT_EQ(shape_of("output.weight"), (Shape{3, 4}));
  config.head_sizes.clear();
  EXPECT_EQ(tensor_specs(config, weights)[tensor_specs(config, weights).size() - 2].shape, (Shape{3, 11}));
  EXPECT_TRUE(weights.head.empty());
}

// A checkpoint directory that a test damages.
class Checkpoint : public ::testing::Test {
 protected:
  Checkpoint() : model_(random_model(odd_config(), 1)) {
    model_->vocabulary = numbered_words(29);
    save_model(path(), *model_, DType::f32);
  }

  std::filesystem::path path() const { return directory_ / "checkpoint"; }
  std::string load_error() const {
    return error_of([&] { load_model(path()); });
  }

  // The saved tensors, for a file with some of them changed.
  std::vector<io::TensorToWrite> tensors() const {
    std::vector<io::TensorToWrite> list;
    for (const TensorSpec& spec : tensor_specs(model_->config, model_->weights)) {
      list.push_back({spec.name, DType::f32, spec.shape, spec.values->span()});
    }
    return list;
  }
  void write(const std::vector<io::TensorToWrite>& list) const {
    io::write_safetensors(path() / "model.safetensors", list);
  }

  const TempDir directory_;
  std::shared_ptr<Model> model_;
};

TEST_F(Checkpoint, SavedAndLoadedAgain) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    save_model(path(), *model_, dtype);
    Model loaded = load_model(path());
    EXPECT_EQ(loaded.config, model_->config);
    EXPECT_EQ(loaded.vocabulary, model_->vocabulary);
    EXPECT_TRUE(loaded.warnings.empty());
    const auto expected = tensor_specs(model_->config, model_->weights);
    const auto actual = tensor_specs(loaded.config, loaded.weights);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      std::vector<float> rounded;
      for (const float value : *expected[i].values) {
        rounded.push_back(dtype == DType::f32   ? value
                          : dtype == DType::f16 ? f16_to_f32(f32_to_f16(value))
                                                : bf16_to_f32(f32_to_bf16(value)));
      }
      EXPECT_TRUE(test::same_bits(actual[i].values->span(), rounded)) << actual[i].name;
    }
  }
}

TEST_F(Checkpoint, VocabularyAndEmbeddingMayBeMissing) {
  std::filesystem::remove(path() / "vocab.txt");
  auto list = tensors();
  list.erase(list.begin());
  write(list);
  const Model loaded = load_model(path());
  EXPECT_TRUE(loaded.vocabulary.empty());
  EXPECT_TRUE(loaded.weights.embedding.empty());
  EXPECT_TRUE(loaded.warnings.empty());

  const TempDir other;
  Model again = load_model(path());
  save_model(other / "copy", again, DType::f32);
  EXPECT_FALSE(std::filesystem::exists(other / "copy" / "vocab.txt"));
  EXPECT_EQ(read_file(other / "copy" / "model.safetensors"), read_file(path() / "model.safetensors"));
}

TEST_F(Checkpoint, EveryOtherFileIsRequired) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    const std::string bytes = read_file(path() / name);
    std::filesystem::remove(path() / name);
    EXPECT_NE(load_error().find(name), std::string::npos);
    write_file(path() / name, bytes);
  }
  EXPECT_EQ(load_error(), "no error");
  EXPECT_NE(error_of([&] { load_model(directory_ / "nowhere"); }), "no error");
  // A vocabulary that is a link to nothing is not an absent one.
  std::filesystem::remove(path() / "vocab.txt");
  std::filesystem::create_symlink("nowhere", path() / "vocab.txt");
  EXPECT_NE(load_error().find("vocab.txt"), std::string::npos);
}

TEST_F(Checkpoint, EveryTensorIsRequiredWithItsShapeAndType) {
  for (size_t i = 0; i < tensors().size(); ++i) {
    auto list = tensors();
    const std::string name = list[i].name;
    if (name != "embedding.weight") {
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
      write(list);
      EXPECT_NE(load_error().find(name), std::string::npos) << load_error();
    }
    list = tensors();
    list[i].shape.push_back(1);  // the same values in another shape
    write(list);
    EXPECT_NE(load_error().find(name), std::string::npos) << load_error();
  }
  write(tensors());
  std::string bytes = read_file(path() / "model.safetensors");
  bytes.replace(bytes.find("\"F32\""), 5, "\"I32\"");
  write_file(path() / "model.safetensors", bytes);
  EXPECT_NE(load_error().find("I32"), std::string::npos) << load_error();
}

TEST_F(Checkpoint, WeightsMustBeFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    auto list = tensors();
    std::vector<float> router(list[7].values.begin(), list[7].values.end());
    ASSERT_EQ(list[7].name, "router.weight");
    router[13] = bad;
    list[7].values = router;
    write(list);
    EXPECT_NE(load_error().find("model.safetensors: tensor 'router.weight' element 13: got"), std::string::npos)
        << load_error();
  }
}

TEST_F(Checkpoint, ExtraTensorsAreReported) {
  auto list = tensors();
  const std::vector<float> one = {1};
  list.push_back({"lm_head.weight", DType::f32, {1}, one});
  write(list);
  ASSERT_EQ(load_model(path()).warnings.size(), 1u);
  EXPECT_NE(load_model(path()).warnings[0].find("tensor 'lm_head.weight' is not part of the model"), std::string::npos);
  for (int i = 0; i < 50; ++i) list.push_back({"extra." + std::to_string(i), DType::f32, {1}, one});
  write(list);
  const std::vector<std::string> warnings = load_model(path()).warnings;
  ASSERT_EQ(warnings.size(), 21u);
  EXPECT_NE(warnings.back().find("31 more tensors"), std::string::npos) << warnings.back();
}

TEST_F(Checkpoint, VocabularyMustFitTheConfig) {
  write_file(path() / "vocab.txt", "<unk>\n<pad>\nfilm\n");
  EXPECT_NE(load_error().find("got 3 words, expected the vocab_size of config.json, 29"), std::string::npos)
      << load_error();
}

TEST_F(Checkpoint, AConfigThatDoesNotFitTheTensorsNamesOne) {
  ClassifierConfig config = odd_config();
  config.expert_size = 12;
  save_config(path() / "config.json", config);
  EXPECT_NE(load_error().find("experts.0.weight"), std::string::npos) << load_error();
  // A huge one must not take memory before the file's sizes are known.
  config = odd_config();
  config.vocab_size = 16'777'216;
  config.embedding_size = 65'536;
  save_config(path() / "config.json", config);
  std::filesystem::remove(path() / "vocab.txt");
  EXPECT_NE(load_error().find("embedding.weight"), std::string::npos) << load_error();
}

TEST_F(Checkpoint, SavingRefusesWhatCouldNotBeLoaded) {
  model_->weights.output.bias[1] = 70'000.0f;
  EXPECT_EQ(error_of([&] { save_model(path(), *model_, DType::f32); }), "no error");
  const std::string error = error_of([&] { save_model(path(), *model_, DType::f16); });
  EXPECT_NE(error.find("tensor 'output.bias' element 1: got 70000, expected a number that is finite as F16"),
            std::string::npos)
      << error;
  model_->config.num_classes = 4;
  EXPECT_NE(error_of([&] { save_model(path(), *model_, DType::f32); }), "no error");
  write_file(directory_ / "file", "");
  model_->config.num_classes = 3;
  EXPECT_NE(error_of([&] { save_model(directory_ / "file" / "below", *model_, DType::f32); }), "no error");
}

}  // namespace
}  // namespace tessera::classifier
