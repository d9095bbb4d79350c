package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"

	helper "github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// credentials looks up credentials. It implements [authn.ContextKeychain].
type credentials struct {
	task   *Auth
	config string // path of a docker config.json, or empty
	soft   bool
}

// dockerConfig holds the fields of a docker config.json that are used.
type dockerConfig struct {
	Auths       map[string]authn.AuthConfig `json:"auths"`
	CredHelpers map[string]string           `json:"credHelpers"`
	CredsStore  string                      `json:"credsStore"`
}

func (c credentials) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return c.ResolveContext(context.Background(), target)
}

func (c credentials) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	if c.task != nil && *c.task != (Auth{}) {
		return &authn.Basic{Username: c.task.Username, Password: c.task.Password}, nil
	}
	if c.config == "" {
		return authn.Anonymous, nil
	}
	auth, err := configured(ctx, c.config, target)
	if err != nil && c.soft && ctx.Err() == nil {
		return authn.Anonymous, nil
	}
	return auth, err
}

// configured returns the credentials for a repository according to a docker config.json:
// an entry of the file itself, or otherwise the output of a helper.
func configured(ctx context.Context, file string, target authn.Resource) (authn.Authenticator, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read docker config: %w", err)
	}
	var config dockerConfig
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("parse docker config %s: %w", file, err)
	}
	for _, key := range keys(target) {
		if auth := config.Auths[key]; auth != (authn.AuthConfig{}) {
			return authn.FromConfig(auth), nil
		}
	}
	for _, key := range keys(target) {
		if program := config.CredHelpers[key]; program != "" {
			return askHelper(ctx, program, target.RegistryStr())
		}
	}
	if config.CredsStore != "" {
		return askHelper(ctx, config.CredsStore, target.RegistryStr())
	}
	return authn.Anonymous, nil
}

// keys returns the names under which a docker config may have credentials for a
// repository, the most specific first: the repository and the paths above it, as Podman
// writes them (containers-auth.json(5)), the registry, and the historical URLs.
func keys(target authn.Resource) []string {
	var keys []string
	for p := target.String(); p != "."; p = path.Dir(p) {
		keys = append(keys, p)
	}
	registry := target.RegistryStr()
	if registry == name.DefaultRegistry {
		keys = append(keys, dockerHub)
	}
	return append(keys, "https://"+registry, "https://"+registry+"/", "https://"+registry+"/v1/", "https://"+registry+"/v2/")
}

// askHelper runs a credential helper (docker-credential-helpers, "Development"). The
// helper reads the name of the server and writes JSON. Errors never contain its output,
// which may include the secret.
func askHelper(ctx context.Context, program, registry string) (authn.Authenticator, error) {
	if registry == name.DefaultRegistry {
		registry = authn.DefaultAuthKey
	}
	program = "docker-credential-" + program
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(registry)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // also kills its children
	cmd.WaitDelay = time.Second                                                          // a child that survives must not block us
	out, err := cmd.Output()
	if err != nil {
		if helper.IsErrCredentialsNotFoundMessage(string(out)) {
			return authn.Anonymous, nil
		}
		return nil, explainHelper(ctx, program, registry, err)
	}
	var found helper.Credentials
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("parse output of credential helper %s: %w", program, err)
	}
	if found.Username == "<token>" {
		return authn.FromConfig(authn.AuthConfig{IdentityToken: found.Secret}), nil
	}
	return &authn.Basic{Username: found.Username, Password: found.Secret}, nil
}

// explainHelper adds advice on finding the cause. A helper that exists may have failed
// because of the network.
func explainHelper(ctx context.Context, program, registry string, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	err = fmt.Errorf("run credential helper: %w; try on the host: echo %s | %s get", err, registry, program)
	if errors.Is(err, exec.ErrNotFound) {
		return err
	}
	return networkError(err)
}
