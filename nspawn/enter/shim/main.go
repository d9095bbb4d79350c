// Command shim runs the packages launch, gate and enter on the way into a machine.
//
// It is a separate program because the plugin itself would take longer to start than
// everything else of an exec: 50 of 65 ms, for the initialization of Nomad's packages.
//
// Only one of its threads works, so the runtime need not determine how many CPUs it may
// use. For that, the runtime would read the list of all mounts.
//
// `make build` builds it and, with the build tag shim, embeds it into the plugin.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"os"

	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/launch"
)

func main() {
	switch {
	case launch.Called(os.Args):
		launch.Main()
	case inside.Called(os.Args):
		inside.Main()
	case container.Called(os.Args):
		container.Main()
	}
	os.Exit(2) // it is not meant to be run by hand
}
