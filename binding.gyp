# A shim: CMakeLists.txt is the only description of the native build. node-gyp-build and prebuildify call
# node-gyp; node-gyp runs this one action.
{
  "targets": [
    {
      "target_name": "dqlite",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/$(BUILDTYPE)/dqlite.node"],
          "action": ["node", "scripts/build-native.mjs"]
        }
      ]
    }
  ]
}
