package programs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/stage"
)

// Own returns the path of the program that starts nspawn, see package launch,
// and that nspawn starts, see package gate. It is the small one that is built in, put
// where it stays until the host is booted again: a guest may reboot after we were
// upgraded. Where none was built in, it is our own executable.
func Own(pins string) (string, error) {
	program := enter.Shim()
	if program == nil {
		return executable()
	}
	if err := stage.PrepareDir(pins); err != nil {
		return "", err
	}
	path := filepath.Join(pins, fileName())
	if err := install(path, program); err != nil {
		return "", fmt.Errorf("write the program that starts machines: %w", err)
	}
	return path, nil
}

// install writes a program to a path, unless one is there. Callers may do so at the same
// time: a program is complete once it has its name, and keeps it. One that was exchanged
// for another could not be mounted any more by whoever has looked it up before.
func install(path string, program []byte) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".launch-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(program)
	if err == nil {
		err = file.Chmod(0o755) // the root of a container is another user
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Link(file.Name(), path)
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// fileName tells the program from those of other versions of ours. It takes milliseconds.
var fileName = sync.OnceValue(func() string { return fmt.Sprintf("launch-%x", sha256.Sum256(enter.Shim())) })

// executable is our own executable, which takes longer to start. It has to run in any image.
func executable() (string, error) {
	static, err := container.Static()
	if err != nil {
		return "", err
	}
	if !static {
		return "", errors.New("this nomad-driver-nspawn needs shared libraries and cannot be run in an image: build it with CGO_ENABLED=0 (make build)")
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	return path, nil
}
