package job

import (
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

type environmentOptions struct {
	Environment map[string]string `codec:"environment"`
}

var environmentSchema = schema.Options{"environment": schema.StringMap("environment")}

func (c TaskConfig) validateEnvironment() error {
	var found schema.Mistakes
	for _, name := range slices.Sorted(maps.Keys(c.Environment)) {
		found.Unless(machine.PossibleEnvironmentName(name), "environment: %q cannot be the name of a variable", name)
	}
	return found.Err()
}

// applyEnvironment takes the variables of the image, of Nomad and of the job, each
// over the ones before.
func (c TaskConfig) applyEnvironment(in Input, spec *machine.Spec) error {
	env := map[string]string{}
	for _, variable := range in.Image.Config.Env {
		if name, value, ok := strings.Cut(variable, "="); ok && machine.PossibleEnvironmentName(name) {
			env[name] = value
		}
	}
	maps.Copy(env, in.Task.Env)
	maps.Copy(env, c.Environment)
	var found schema.Mistakes
	for _, name := range slices.Sorted(maps.Keys(env)) {
		switch {
		case !machine.PossibleEnvironmentName(name) || !utf8.ValidString(name):
			found.Refuse("env: %q cannot be the name of a variable", name)
		case !utf8.ValidString(env[name]) || strings.Contains(env[name], "\x00"):
			found.Refuse("env: the value of %q is not valid UTF-8", name)
		}
	}
	spec.Environment = env
	return found.Err()
}
