/* Who may call a function: Python calls what is API, by pointer through ctypes; what is INTERNAL stays in this library.
 */
#ifndef PERIGEE_API_H
#define PERIGEE_API_H

#if defined(_WIN32)
#define API __declspec(dllexport)
#define INTERNAL
#else
#define API __attribute__((visibility("default")))
#define INTERNAL __attribute__((visibility("hidden")))
#endif

#endif
