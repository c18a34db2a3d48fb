# Every target of the project links e2bfs_flags: warnings are errors, sanitizers as asked.
add_library(e2bfs_flags INTERFACE)
target_include_directories(e2bfs_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(e2bfs_flags INTERFACE _FILE_OFFSET_BITS=64 E2BFS_VERSION="${PROJECT_VERSION}")
target_compile_options(e2bfs_flags INTERFACE -Wall -Wextra -Werror -Wnon-virtual-dtor -Woverloaded-virtual
                       -fno-omit-frame-pointer)
# False alarms of g++ 12 in optimized builds: on every comparison of a std::optional, inside <stop_token>, and at -O3 on "text" + string.
target_compile_options(e2bfs_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-use-after-free;-Wno-restrict>)
if(E2BFS_SANITIZE STREQUAL "address")
  target_compile_options(e2bfs_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined)
  target_link_options(e2bfs_flags INTERFACE -fsanitize=address,undefined)
  target_compile_definitions(e2bfs_flags INTERFACE E2BFS_SANITIZED)
elseif(E2BFS_SANITIZE STREQUAL "thread")
  # -Wno-tsan: g++ says that it does not model atomic_thread_fence, which the project does not use.
  target_compile_options(e2bfs_flags INTERFACE -fsanitize=thread -Wno-tsan)
  target_link_options(e2bfs_flags INTERFACE -fsanitize=thread)
  target_compile_definitions(e2bfs_flags INTERFACE E2BFS_SANITIZED)
elseif(NOT E2BFS_SANITIZE STREQUAL "")
  message(FATAL_ERROR "E2BFS_SANITIZE must be empty, 'address' or 'thread', not '${E2BFS_SANITIZE}'")
endif()

# e2bfs_add_layer(NAME DIRECTORIES dir... LINK target...): a static library of every .cc in the directories
# (not below them), except main.cc.
function(e2bfs_add_layer name)
  cmake_parse_arguments(arg "" "" "DIRECTORIES;LINK" ${ARGN})
  set(sources)
  foreach(directory ${arg_DIRECTORIES})
    file(GLOB found CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${directory}/*.cc)
    list(APPEND sources ${found})
  endforeach()
  list(FILTER sources EXCLUDE REGEX "/main\\.cc$")
  if(sources)
    add_library(${name} STATIC ${sources})
    target_link_libraries(${name} PUBLIC e2bfs_flags ${arg_LINK})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE e2bfs_flags ${arg_LINK})
  endif()
endfunction()
