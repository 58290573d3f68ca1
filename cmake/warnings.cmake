# Flags of every target of this project: warnings are errors, sanitizers when asked for.
add_library(tessera_flags INTERFACE)
target_compile_options(tessera_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;\
-Wconversion;-Wnon-virtual-dtor;-Woverloaded-virtual;-Wimplicit-fallthrough;-Werror>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlaps in std::string's own code: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105651
  target_compile_options(tessera_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
# A product and a sum fused by the compiler would round differently from target to target.
target_compile_options(tessera_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
if(TESSERA_SANITIZE)
  target_compile_options(tessera_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all
                         -fno-omit-frame-pointer -g1)
  target_link_options(tessera_flags INTERFACE -fsanitize=address,undefined)
endif()
# A program that uses a part of a library loads only what that part needs: the GPU tests run where there is no oneDNN.
target_link_options(tessera_flags INTERFACE -Wl,--as-needed)
