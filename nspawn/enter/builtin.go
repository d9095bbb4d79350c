//go:build shim

package enter

import _ "embed"

//go:embed shim/shim
var builtin []byte
