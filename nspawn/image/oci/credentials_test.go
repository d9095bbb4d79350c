package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/shoenig/test/must"
)

// demandAuth answers requests that do not have the right credentials.
func demandAuth(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		u, p, _ := r.BasicAuth()
		if u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"not %s, header %s"}]}`, p, r.Header.Get("Authorization"))
		return true
	}
}

func TestTaskAuth(t *testing.T) {
	s := newServer(t, demandAuth("me", "hunter2"))
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:1", image)
	got, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "hunter2"}, false)
	must.NoError(t, err)
	requireSame(t, image, got)

	_, err = client(s).Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "401: set auth { } in the task or the docker config of the plugin")
	for _, soft := range []bool{false, true} {
		_, err = client(s).Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "wrong-secret"}, soft)
		requireFailure(t, err, false, "REDACTED")
		must.StrNotContains(t, err.Error(), "wrong-secret")
		must.StrNotContains(t, err.Error(), "bWU6d3Jvbmctc2VjcmV0") // base64
	}
}

// demandToken simulates a registry with a token server (distribution spec, "Token
// Authentication"), which gives a token to user, or to nobody.
func demandToken(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		u, p, sent := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && (u == user && p == password || user == "" && !sent):
			fmt.Fprint(w, `{"token":"the-token"}`)
		case r.URL.Path == "/token":
			http.Error(w, "wrong: "+p, http.StatusUnauthorized)
		case r.Header.Get("Authorization") == "Bearer the-token":
			return false
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		}
		return true
	}
}

func TestToken(t *testing.T) {
	s := newServer(t, demandToken("me", "hunter2"))
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:1", image)
	got, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "hunter2"}, false)
	must.NoError(t, err)
	requireSame(t, image, got)
	_, err = client(s).Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "wrong-secret"}, false)
	requireFailure(t, err, false, "401: set auth { }")
	must.StrNotContains(t, err.Error(), "wrong-secret")
}

func TestTokensAreInNoError(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"echo": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no good: "+r.FormValue("refresh_token"), http.StatusBadRequest)
		},
		"no access token": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"refresh_token":%q}`, r.FormValue("refresh_token"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			posted := false
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					posted = r.FormValue("refresh_token") == "the-refresh-token"
					answer(w, r)
					return true
				}
				return demandToken("", "")(w, r)
			})
			c := client(s)
			c.DockerConfig = writeFile(t, "config.json", fmt.Appendf(nil, `{"auths":{%q:{"identitytoken":"the-refresh-token"}}}`, s.host), 0o600)
			_, err := c.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
			must.Error(t, err)
			must.True(t, posted)
			must.StrNotContains(t, err.Error(), "the-refresh-token")
		})
	}
}

func TestAuthSoftFail(t *testing.T) {
	s := newServer(t, demandToken("", ""))
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:1", image)
	_, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "old"}, false)
	requireFailure(t, err, false, "401")
	got, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "old"}, true)
	must.NoError(t, err)
	requireSame(t, image, got)

	// Failures without relation to credentials are not tried again.
	_, err = client(s).Resolve(t.Context(), s.ref(t, "none:1"), nil, true)
	requireFailure(t, err, false, "404")
	must.Eq(t, 1, s.seen("/none/"))
}

func TestSoftWithBrokenConfig(t *testing.T) {
	s := newServer(t, nil)
	s.push(t, "app:1", newImage(t, "linux/amd64"))
	c := client(s)
	for config, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"):                                      "read docker config",
		writeFile(t, "broken", []byte("{"), 0o600):                              "parse docker config",
		writeFile(t, "config", []byte(`{"credsStore":"not-installed"}`), 0o600): "run credential helper",
	} {
		c.DockerConfig = config
		_, err := c.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
		requireFailure(t, err, false, want)
		_, err = c.Resolve(t.Context(), s.ref(t, "app:1"), nil, true)
		must.NoError(t, err)
	}
}

func TestDockerConfig(t *testing.T) {
	auth := map[string]string{"auth": "bWU6aHVudGVyMg=="}  // me:hunter2
	other := map[string]string{"auth": "b3RoZXI6b3RoZXI="} // other:other
	for _, c := range []struct {
		repository string
		auths      map[string]any
		want       string
	}{
		{"example.org/a/b", map[string]any{"example.org": auth}, "me"},
		{"example.org/a/b", map[string]any{"example.org": other, "example.org/a": auth}, "me"},
		{"example.org/a/b", map[string]any{"example.org/a": other, "example.org/a/b": auth}, "me"},
		{"example.org/a/b", map[string]any{"example.org/c": auth}, ""},
		{"example.org:5000/a", map[string]any{"example.org": auth}, ""},
		{"example.org/a", map[string]any{"https://example.org/v1/": auth}, "me"},
		{"example.org/a", map[string]any{"example.org": map[string]string{}, "https://example.org": auth}, "me"},
		{"example.org/a", map[string]any{"example.org": map[string]string{"username": "me", "password": "x"}}, "me"},
		{"alpine", map[string]any{"https://index.docker.io/v1/": auth}, "me"},
		{"alpine", map[string]any{"docker.io": auth}, "me"},
		{"alpine", nil, ""},
	} {
		raw, err := json.Marshal(map[string]any{"auths": c.auths})
		must.NoError(t, err)
		repository, err := name.NewRepository(c.repository)
		must.NoError(t, err)
		keychain := credentials{config: writeFile(t, "config.json", raw, 0o600)}
		found, err := keychain.ResolveContext(t.Context(), repository)
		must.NoError(t, err)
		got, err := found.Authorization()
		must.NoError(t, err)
		must.Eq(t, c.want, got.Username, must.Sprintf("%+v", c))
	}
}

// installHelper installs docker-credential-NAME on PATH.
func installHelper(t *testing.T, name, script string) {
	t.Helper()
	path := writeFile(t, "docker-credential-"+name, []byte("#!/bin/sh\n"+script), 0o755)
	t.Setenv("PATH", filepath.Dir(path)+":"+os.Getenv("PATH"))
}

func TestCredentialHelper(t *testing.T) {
	s := newServer(t, demandAuth("me", "hunter2"))
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:1", image)
	installHelper(t, "good", `test "$1" = get && read server; echo "{\"ServerURL\":\"$server\",\"Username\":\"me\",\"Secret\":\"hunter2\"}"`)
	installHelper(t, "bad", `echo "hunter2 is not known"; exit 3`)
	installHelper(t, "empty", `echo "credentials not found in native keychain"; exit 1`)
	c := client(s)
	for _, config := range []string{`{"credsStore":"good"}`, `{"credHelpers":{"` + s.host + `":"good"},"credsStore":"bad"}`} {
		c.DockerConfig = writeFile(t, "config.json", []byte(config), 0o600)
		requireSame(t, image, resolve(t, c, s.ref(t, "app:1")))
	}

	c.DockerConfig = writeFile(t, "config.json", []byte(`{"credsStore":"empty"}`), 0o600)
	_, err := c.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "401")

	c.DockerConfig = writeFile(t, "config.json", []byte(`{"credsStore":"bad"}`), 0o600)
	_, err = c.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, true, "run credential helper: exit status 3; try on the host: echo "+s.host+" | docker-credential-bad get")
	must.StrNotContains(t, err.Error(), "hunter2")

	_, err = c.Resolve(t.Context(), s.ref(t, "app:1"), &Auth{"me", "hunter2"}, false)
	must.NoError(t, err) // the task's own credentials come first
}

func TestCredentialHelperToken(t *testing.T) {
	installHelper(t, "token", `echo '{"Username":"<token>","Secret":"refresh"}'`)
	found, err := askHelper(t.Context(), "token", "example.org")
	must.NoError(t, err)
	got, err := found.Authorization()
	must.NoError(t, err)
	must.Eq(t, &authn.AuthConfig{IdentityToken: "refresh"}, got)
}

// A helper that hangs ends with the context, and so do its children.
func TestCredentialHelperHangs(t *testing.T) {
	started, alive := filepath.Join(t.TempDir(), "started"), filepath.Join(t.TempDir(), "alive")
	must.NoError(t, syscall.Mkfifo(started, 0o600))
	must.NoError(t, syscall.Mkfifo(alive, 0o600))
	installHelper(t, "slow", "sleep 1000 > "+alive+" & echo > "+started+"; wait")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := askHelper(ctx, "slow", "example.org")
		ended <- err
	}()
	child, err := os.Open(alive) // this waits for the child
	must.NoError(t, err)
	defer child.Close()
	_, err = os.ReadFile(started)
	must.NoError(t, err)

	cancel()
	err = <-ended
	must.ErrorIs(t, err, context.Canceled)
	must.False(t, errors.Is(fail("x", err), ErrTemporary))
	_, err = io.ReadAll(child) // this ends with the child
	must.NoError(t, err)
}
