# Flags of every target of this project: warnings, sanitizers when asked for. Programs link tessera_flags; libraries
# take its compile options by tessera_use_own_flags, so that no flag reaches a target of somebody else.
add_library(tessera_flags INTERFACE)
if(TESSERA_WARNINGS_AS_ERRORS)
  set(TESSERA_WERROR -Werror)
endif()
target_compile_options(tessera_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;\
-Wconversion;-Wnon-virtual-dtor;-Woverloaded-virtual;-Wimplicit-fallthrough;${TESSERA_WERROR}>")
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
if(TESSERA_SANITIZE_THREADS)
  target_compile_options(tessera_flags INTERFACE -fsanitize=thread -fno-omit-frame-pointer -g1)
  target_link_options(tessera_flags INTERFACE -fsanitize=thread)
endif()
# Shipped binaries: overflows of buffers end the program, tables of addresses are read-only once they are filled in, and
# no path of the machine that built them is inside. Sanitizers bring checks of their own in place of _FORTIFY_SOURCE,
# which needs an optimised build; who chose another level keeps it.
target_compile_options(tessera_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-fstack-protector-strong;-ffile-prefix-map=${PROJECT_SOURCE_DIR}=.>")
if(NOT TESSERA_SANITIZE AND NOT TESSERA_SANITIZE_THREADS AND NOT CMAKE_CXX_FLAGS MATCHES "_FORTIFY_SOURCE")
  target_compile_options(tessera_flags INTERFACE
    "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<NOT:$<CONFIG:Debug>>>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=2>")
endif()
target_link_options(tessera_flags INTERFACE -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)
# A program that uses a part of a library loads only what that part needs: the GPU tests run where there is no oneDNN.
target_link_options(tessera_flags INTERFACE -Wl,--as-needed)

# Linking tessera_flags, even privately, would hand its link options on from a static library.
function(tessera_use_own_flags target)
  target_compile_options(${target} PRIVATE $<TARGET_PROPERTY:tessera_flags,INTERFACE_COMPILE_OPTIONS>)
endfunction()

# Under sanitizers what computes is optimised, the rest is not: files of strings and containers compile in a third of the
# time (src/io/records_csv.cc in 3.8 s in place of 13.9), and their tests compute little.
function(tessera_compile_quickly target)
  if(TESSERA_SANITIZE)
    target_compile_options(${target} PRIVATE -O0)
  endif()
endfunction()
