// What addon.cc calls. Only addon.cc and *_binding.cc know N-API.
#pragma once
#include <napi.h>

void InitEngine(Napi::Env env, Napi::Object exports);
void InitStorage(Napi::Env env, Napi::Object exports);
