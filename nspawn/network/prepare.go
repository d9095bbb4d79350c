package network

import (
	"fmt"
	"os"

	"nomad-driver-nspawn/nspawn/network/links"
)

// Prepare makes the network namespace at path fit for a machine with a user
// namespace that does not own it. Nobody else uses the namespace but the tasks of
// its allocation.
func Prepare(path string) error {
	namespace, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("prepare network: open network namespace %s: %w", path, err)
	}
	defer namespace.Close()
	if err := links.Settings(namespace); err != nil {
		return fmt.Errorf("prepare network: %w", err)
	}
	return nil
}
