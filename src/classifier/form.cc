#include <array>
#include <utility>

#include "tessera/classifier/cuda_classifier.h"
#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

constexpr std::array<std::pair<Form, const char*>, 5> kForms = {{{Form::automatic, "auto"},
                                                                 {Form::direct, "direct"},
                                                                 {Form::dft, "dft"},
                                                                 {Form::distinct, "distinct"},
                                                                 {Form::vocab, "vocab"}}};

}  // namespace

std::string form_name(Form form) {
  for (const auto& [value, name] : kForms) {
    if (value == form) return name;
  }
  return "?";
}

Form parse_form(const std::string& name) {
  for (const auto& [value, known] : kForms) {
    if (name == known) return value;
  }
  throw Error("form", "'" + escaped(name) + "'", "auto, direct, dft, distinct or vocab");
}

}  // namespace tessera::classifier
