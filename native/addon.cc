// The addon's door: one per-environment init that lets each binding add its exports. Worker threads load it several
// times in one process; each binding keeps its state per environment and cleans it up with the environment.
#include <napi.h>

#include "bindings.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  InitEngine(env, exports);
  InitStorage(env, exports);
  return exports;
}

NODE_API_MODULE(dqlite, Init)
