/* Functions called from Python through ctypes, by pointer. */
#ifndef PERIGEE_API_H
#define PERIGEE_API_H

#if defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

#endif
