# e2bfs_add_test_directory(KIND DIRECTORY): every *_test.cc of the directory becomes one executable, run as one ctest
# test named KIND/<directory> and labelled KIND.
function(e2bfs_add_test_directory kind directory)
  get_filename_component(area ${directory} NAME)
  file(GLOB sources CONFIGURE_DEPENDS ${directory}/*.cc)
  if(NOT sources)
    return()
  endif()
  set(target ${kind}_${area}_tests)
  add_executable(${target} ${sources})
  target_link_libraries(${target} PRIVATE e2bfs_test_support e2bfs_fuse GTest::gmock GTest::gmock_main)
  add_test(NAME ${kind}/${area} COMMAND ${target} --gtest_brief=1)
  set_tests_properties(${kind}/${area} PROPERTIES LABELS ${kind} TIMEOUT 600)
endfunction()
