/* Who may call a function, and for which processors it is built: Python calls what is API, by pointer through ctypes;
 * what is INTERNAL stays in this library. */
#ifndef PERIGEE_API_H
#define PERIGEE_API_H

#if defined(_WIN32)
#define API __declspec(dllexport)
#define INTERNAL
#else
#define API __attribute__((visibility("default")))
#define INTERNAL __attribute__((visibility("hidden")))
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#elif defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#define ARM 1
#endif

/* The compiler builds a CLONED function for several instruction sets, and the loader takes the best of them. */
#if defined(X86) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#elif defined(X86) && defined(__gnu_linux__) && !defined(__clang__)
#define CLONED __attribute__((target_clones("avx2", "default")))
#else
#define CLONED
#endif

#endif
