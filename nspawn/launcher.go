package nspawn

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/enter"
)

// lookLauncher returns the path of the program that starts nspawn. It is the small one
// that is built in, put where it stays until the host is booted again: a guest may
// reboot after we were upgraded. Where none was built in, it is our own executable.
func (m *Manager) lookLauncher() (string, error) {
	program := enter.Shim()
	if program == nil {
		path, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find own executable: %w", err)
		}
		return path, nil
	}
	if err := m.preparePins(); err != nil {
		return "", err
	}
	path := filepath.Join(m.dirs.pins(), fmt.Sprintf("launch-%x", sha256.Sum256(program)))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// Whoever is first gives it its name when it is complete.
	file, err := os.CreateTemp(m.dirs.pins(), ".launch-")
	if err != nil {
		return "", fmt.Errorf("write the program that starts machines: %w", err)
	}
	_, err = file.Write(program)
	if err == nil {
		err = file.Chmod(0o700)
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
		return "", fmt.Errorf("write the program that starts machines: %w", err)
	}
	return path, nil
}
