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

# Sources that are compiled as one, eight at a time or as many as is said, read the headers that they share once, and
# what those make of templates is compiled once. Names in unnamed namespaces of one target then differ from file to file;
# tessera_alone says which files keep theirs.
function(tessera_as_one target)
  set(at_a_time 8 ${ARGN})
  list(POP_BACK at_a_time last)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${last})
endfunction()
function(tessera_library_as_one target)
  if(TESSERA_UNITY AND NOT TESSERA_HAVE_CUDA)  # with CUDA the objects say what a GPU suite is made of, file by file
    tessera_as_one(${target})
  endif()
endfunction()
function(tessera_alone)
  set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()
