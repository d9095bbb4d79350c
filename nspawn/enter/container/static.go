package container

import (
	"debug/elf"
	"fmt"
)

// Static reports whether the running executable needs no dynamic linker, so that it can
// be run in any image.
func Static() (bool, error) {
	file, err := elf.Open("/proc/self/exe")
	if err != nil {
		return false, fmt.Errorf("read own executable: %w", err)
	}
	defer file.Close()
	for _, program := range file.Progs {
		if program.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}
