package postgres

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/group"
)

// Config describes one PostgreSQL server. Admin is required.
type Config struct {
	// Name identifies the engine in the catalogue, for as long as it holds
	// tenants. Empty means "postgres".
	Name string
	// Admin is the connection string (libpq) of a role that may create roles
	// and databases. It connects to the server itself, not to a pooler.
	Admin string
	// Tenants is the connection string by which tenants connect, possibly to a
	// pooler; user, password and database in it are replaced. Empty means Admin.
	Tenants string
	// Schemas puts instances into schemas of Admin's database instead of
	// databases of their own: a few KiB each instead of several MiB.
	Schemas bool
	// MaxConns is how many connections all tenants use at once; 0 means 64.
	MaxConns int
}

// Format implements fmt.Formatter: connection strings hold passwords.
func (c Config) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "postgres.Config(%s)", c.Name) }

// LogValue implements slog.LogValuer.
func (c Config) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

const (
	prefix          = "t_"
	table           = "r"
	schema          = "tenant" // in a database of its own
	tenantConns     = 4        // of one instance
	idleTime        = 10 * time.Second
	scramIterations = 4096
	connectTimeout  = 5 * time.Second
	adminTimeout    = 60 * time.Second
)

// Engine implements engine.Engine. It is safe for concurrent use.
type Engine struct {
	cfg     Config
	admin   *pgxpool.Pool
	tenants *pgxpool.Config
	conns   chan struct{}
}

// New connects to the server as administrator.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Name == "" {
		cfg.Name = "postgres"
	}
	if cfg.Tenants == "" {
		cfg.Tenants = cfg.Admin
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 64
	}
	admin, err := poolConfig(cfg.Admin)
	if err != nil {
		return nil, errors.New("postgres: Config.Admin is no connection string") // it may hold a password
	}
	tenants, err := poolConfig(cfg.Tenants)
	if err != nil {
		return nil, errors.New("postgres: Config.Tenants is no connection string")
	}
	e := &Engine{cfg: cfg, tenants: tenants, conns: make(chan struct{}, cfg.MaxConns)}
	if e.admin, err = pgxpool.NewWithConfig(ctx, admin); err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	if err := e.admin.Ping(ctx); err != nil {
		e.admin.Close()
		return nil, fmt.Errorf("postgres: %w: %w", engine.ErrUnavailable, err)
	}
	return e, nil
}

// poolConfig keeps no session state: statements are unnamed, so that a pooler
// may give each transaction another server connection.
func poolConfig(dsn string) (*pgxpool.Config, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	c.ConnConfig.StatementCacheCapacity, c.ConnConfig.DescriptionCacheCapacity = 0, 0
	c.ConnConfig.ConnectTimeout = connectTimeout
	c.ConnConfig.MaxProtocolMessageBodyLen = 2*(engine.MaxKey+engine.MaxValue) + 1024 // in hex; whatever the server says
	c.MaxConns, c.MinConns, c.MaxConnIdleTime = tenantConns, 0, idleTime
	return c, nil
}

// Format implements fmt.Formatter: it knows passwords.
func (e *Engine) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "postgres.Engine(%s)", e.cfg.Name)
}

// LogValue implements slog.LogValuer.
func (e *Engine) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(e)) }

// Name implements engine.Engine.
func (e *Engine) Name() string { return e.cfg.Name }

// Shared implements engine.Engine.
func (e *Engine) Shared() bool { return true }

// Close implements engine.Engine.
func (e *Engine) Close() error { e.admin.Close(); return nil }

// name is the role's name, and the database's or schema's.
func name(ref engine.Ref) string { return prefix + strings.ReplaceAll(ref.String(), "-", "_") }

func (e *Engine) table(ref engine.Ref) string {
	if e.cfg.Schemas {
		return pgx.Identifier{name(ref), table}.Sanitize()
	}
	return pgx.Identifier{schema, table}.Sanitize()
}

// password is the role's: who has not the instance's key can't log in.
func password(ref engine.Ref, fileKey []byte) (string, error) {
	b, err := hkdf.Key(sha256.New, fileKey, nil, "trusttree tenantstore postgres v1 "+ref.String(), 32)
	return hex.EncodeToString(b), err
}

// scram is the verifier that the server keeps (RFC 5803): the password itself
// is in no statement and no log.
func scram(password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	salted, err := pbkdf2.Key(sha256.New, password, salt, scramIterations, 32)
	if err != nil {
		return "", err
	}
	mac := func(text string) []byte {
		m := hmac.New(sha256.New, salted)
		_, _ = m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramIterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}

// inInstance runs statements as administrator in the database that holds the
// instance.
func (e *Engine) inInstance(ctx context.Context, ref engine.Ref, statements ...string) error {
	cc := e.admin.Config().ConnConfig.Copy()
	if !e.cfg.Schemas {
		cc.Database = name(ref)
	}
	c, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// Create implements engine.Engine.
func (e *Engine) Create(ctx context.Context, ref engine.Ref, fileKey []byte, first ...engine.KV) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if err := e.Destroy(ctx, ref); err != nil {
		return err
	}
	pw, err := password(ref, fileKey)
	if err != nil {
		return err
	}
	verifier, err := scram(pw)
	if err != nil {
		return err
	}
	id := pgx.Identifier{name(ref)}.Sanitize()
	_, err = e.admin.Exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT CONNECTION LIMIT %d PASSWORD '%s'",
		id, 8*tenantConns, verifier))
	if err != nil {
		return classify(ref, err)
	}
	sch := pgx.Identifier{schema}.Sanitize()
	if e.cfg.Schemas {
		sch = id
		_, err = e.admin.Exec(ctx, fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", e.adminDB(), id))
	} else {
		_, err = e.admin.Exec(ctx, fmt.Sprintf("CREATE DATABASE %s TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'", id))
		if err == nil {
			_, err = e.admin.Exec(ctx, fmt.Sprintf("REVOKE ALL ON DATABASE %s FROM PUBLIC", id))
		}
		if err == nil {
			_, err = e.admin.Exec(ctx, fmt.Sprintf("GRANT CONNECT ON DATABASE %s TO %s", id, id))
		}
	}
	if err != nil {
		return classify(ref, err)
	}
	st := []string{
		"CREATE SCHEMA " + sch,
		fmt.Sprintf("CREATE TABLE %s (k bytea PRIMARY KEY, v bytea NOT NULL)", e.table(ref)),
		fmt.Sprintf("ALTER TABLE %s ALTER v SET STORAGE EXTERNAL", e.table(ref)), // sealed values don't compress
		fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", sch, id),
		fmt.Sprintf("GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s", e.table(ref), id),
	}
	if !e.cfg.Schemas {
		st = append(st, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
	}
	for _, kv := range first {
		st = append(st, fmt.Sprintf("INSERT INTO %s VALUES ('\\x%x', '\\x%x')", e.table(ref), kv.Key, kv.Value))
	}
	return classify(ref, e.inInstance(ctx, ref, st...))
}

func (e *Engine) adminDB() string {
	return pgx.Identifier{e.admin.Config().ConnConfig.Database}.Sanitize()
}

// Destroy implements engine.Engine.
func (e *Engine) Destroy(ctx context.Context, ref engine.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	id := pgx.Identifier{name(ref)}.Sanitize()
	var there bool
	if err := e.admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", name(ref)).Scan(&there); err != nil {
		return classify(ref, err)
	}
	var st []string
	if there { // no new session, and none that goes on
		st = append(st, fmt.Sprintf("ALTER ROLE %s NOLOGIN", id),
			fmt.Sprintf("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '%s'", name(ref)))
	}
	if e.cfg.Schemas {
		st = append(st, fmt.Sprintf("DROP SCHEMA IF EXISTS %s CASCADE", id))
		if there {
			st = append(st, fmt.Sprintf("REVOKE ALL ON DATABASE %s FROM %s", e.adminDB(), id))
		}
	} else {
		st = append(st, fmt.Sprintf("DROP DATABASE IF EXISTS %s WITH (FORCE)", id))
	}
	for _, s := range append(st, "DROP ROLE IF EXISTS "+id) {
		if _, err := e.admin.Exec(ctx, s); err != nil {
			return classify(ref, err)
		}
	}
	return nil
}

// Fence implements engine.Engine: it waits for writers and then takes their
// privileges away, whichever process they are in.
func (e *Engine) Fence(ctx context.Context, ref engine.Ref, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	st := []string{fmt.Sprintf("GRANT INSERT, UPDATE, DELETE ON %s TO %s", e.table(ref), pgx.Identifier{name(ref)}.Sanitize())}
	if on {
		st = []string{fmt.Sprintf("LOCK TABLE %s IN EXCLUSIVE MODE", e.table(ref)),
			fmt.Sprintf("REVOKE INSERT, UPDATE, DELETE ON %s FROM %s", e.table(ref), pgx.Identifier{name(ref)}.Sanitize())}
	}
	return classify(ref, e.inInstance(ctx, ref, st...))
}

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context) (refs []engine.Ref, err error) {
	rows, err := e.admin.Query(ctx, "SELECT rolname FROM pg_roles WHERE rolname LIKE 't\\_%' ORDER BY rolname")
	if err != nil {
		return nil, classify(engine.Ref{}, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, n := range names {
		if ref, err := engine.ParseRef(strings.Replace(strings.TrimPrefix(n, prefix), "_", "-", 1)); err == nil {
			refs = append(refs, ref)
		}
	}
	return refs, classify(engine.Ref{}, err)
}

// Open implements engine.Engine. It logs in as the instance's role and refuses
// a session that can do more than it should, or is another's.
func (e *Engine) Open(ctx context.Context, ref engine.Ref, fileKey []byte) (engine.DB, error) {
	var there bool // a pooler would let the login wait instead of saying so
	if err := e.admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND rolcanlogin)", name(ref)).Scan(&there); err != nil {
		return nil, classify(ref, err)
	}
	if !there {
		return nil, fmt.Errorf("postgres: instance %v: %w: no such role", ref, engine.ErrNotFound)
	}
	pw, err := password(ref, fileKey)
	if err != nil {
		return nil, err
	}
	c := e.tenants.Copy()
	c.ConnConfig.User, c.ConnConfig.Password = name(ref), pw
	c.ConnConfig.Database = name(ref)
	if e.cfg.Schemas {
		c.ConnConfig.Database = e.admin.Config().ConnConfig.Database
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, classify(ref, err)
	}
	d := &db{e: e, ref: ref, pool: pool, table: e.table(ref), direct: e.admin.Config().ConnConfig.Copy()}
	d.direct.User, d.direct.Password, d.direct.Database = c.ConnConfig.User, pw, c.ConnConfig.Database
	d.wait.Lock, d.wait.Commit = make(chan struct{}, 1), d.runGroup
	if err := d.inspect(ctx); err != nil {
		pool.Close()
		return nil, classify(ref, err)
	}
	return d, nil
}

func (d *db) inspect(ctx context.Context) error {
	var role, database string
	var strong, there bool
	err := d.pool.QueryRow(ctx, `SELECT current_user::text, current_database()::text, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication,
		to_regclass($1) IS NOT NULL FROM pg_roles WHERE rolname = current_user`, d.table).Scan(&role, &database, &strong, &there)
	switch {
	case err != nil:
		return err
	case role != name(d.ref):
		return fmt.Errorf("%w: logged in as %q, expected %q", engine.ErrCorrupt, role, name(d.ref))
	case database != d.pool.Config().ConnConfig.Database:
		return fmt.Errorf("%w: connected to database %q", engine.ErrCorrupt, database)
	case strong:
		return fmt.Errorf("%w: role %q is superuser, bypasses row security or may create roles or databases", engine.ErrCorrupt, role)
	case !there:
		return fmt.Errorf("%w: table %s", engine.ErrNotFound, d.table)
	}
	return nil
}

// classify puts the server's errors into the engine's classes (PostgreSQL,
// appendix A).
func classify(ref engine.Ref, err error) error {
	if err == nil {
		return nil
	}
	class := error(nil)
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &pg):
		switch code := pg.Code; {
		case code == "3D000" || code == "28P01" || code == "28000" || code == "42P01" || code == "3F000": // database, login, table, schema
			class = engine.ErrNotFound
		case code == "42501":
			class = engine.ErrFenced
		case code == "XX001" || code == "XX002":
			class = engine.ErrCorrupt
		case code == "53100":
			class = engine.ErrFull
		case strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53") || strings.HasPrefix(code, "57P") || strings.HasPrefix(code, "40"):
			class = engine.ErrUnavailable
		}
	case errors.As(err, &connect), pgconn.Timeout(err), lost(err):
		class = engine.ErrUnavailable
	}
	if class != nil && !errors.Is(err, class) {
		return fmt.Errorf("postgres: instance %v: %w: %w", ref, class, err)
	}
	return fmt.Errorf("postgres: instance %v: %w", ref, err)
}

// lost reports whether an error is that of a connection that is gone.
func lost(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		pgconn.SafeToRetry(err)
}

type db struct {
	e     *Engine
	ref   engine.Ref
	pool  *pgxpool.Pool
	table string
	wait  group.Queue

	direct *pgx.ConnConfig // the tenant's login, to the server itself
}
