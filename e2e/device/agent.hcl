# The device plugin of the tests: Nomad skips a plugin without a block.

plugin "e2e-device" {}
