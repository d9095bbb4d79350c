//go:build !shim

package enter

var builtin []byte
