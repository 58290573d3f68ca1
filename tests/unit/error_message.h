// What an action that must be refused says.
#pragma once

#include <string>

#include "tessera/core/error.h"

namespace tessera::testing {

/// The message of the Error that the action throws; "no error" if it throws none.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace tessera::testing
