# One publish and one result with server, workers and bridges under valgrind: no
# error has a frame of ours.
#
# Packaged servers aren't built for valgrind, so it knows nothing of palloc():
# what it sees are the blocks that PostgreSQL gets from the system.

use strict;
use warnings;

use FindBin;
use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap);
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'valgrind is not installed'
  if !grep { -x "$_/valgrind" } split /:/, $ENV{PATH};

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 1) foreach (qw(orders results));
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => "autovacuum = off\ncheckpoint_timeout = '1h'",
	start => 0);

# Not by pg_ctl, which would be watched, too.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $server = spawn_guarded(
	{ stdout => $node->logfile, stderr => $node->logfile },
	'valgrind', '--quiet', '--trace-children=yes', '--num-callers=60', '--error-limit=no',
	'--leak-check=full', '--show-leak-kinds=definite',
	"--suppressions=$FindBin::Bin/../test/valgrind.supp",
	'--xml=yes', "--xml-file=$dir/%p.xml",
	$node->installed_command('postgres'), '-D', $node->data_dir);

# psql may end before it was told what to ask, for which IPC::Run dies.
wait_until('the server has started',
	sub { defined eval { $node->safe_psql('postgres', 'SELECT 1') } }) or BAIL_OUT('no server');

$node->safe_psql('postgres', <<'EOS');
SET client_min_messages = warning;
CREATE EXTENSION outbox;
CREATE TABLE orders (id bigserial PRIMARY KEY, product_id int, price numeric, at timestamptz,
	tags text[], options jsonb, note text);
SELECT outbox.set_topic('orders', 'results');
SELECT outbox.attach('orders', 'orders', key => 'product_id', events => '{INSERT,UPDATE}',
	columns => '{id,product_id as productId,price,at,tags,options,note}',
	condition => 'NEW.price > 0', headers => '{"source": "shop", "list": ["a", "b"]}');
EOS

# One to be confirmed, one to fail, and one that is rolled back.
$node->safe_psql('postgres', <<'EOS');
INSERT INTO orders (product_id, price, at, tags, options, note)
	VALUES (1, 9.90, now(), '{a,"b c"}', '{"gift": true}', 'with "quotes"');
BEGIN;
UPDATE orders SET note = repeat('long ', 10000);
SAVEPOINT s;
UPDATE orders SET note = NULL;
ROLLBACK TO s;
COMMIT;
EOS
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.message WHERE status = 'SENT'", 2);

my @ids = map { $_->{header}{id} } $kafka->consume('orders');

is(scalar(@ids), 2, 'both are in Kafka');
$kafka->produce(
	'results',
	{ key => 'none', value => "\xff{" },
	{ key => $ids[0], value => 'SUCCESS' },
	{
		key => undef,
		value => '{"status": "FAILED", "error": "none left"}',
		headers => [ [ 'reply_to_message_id', $ids[1] ] ]
	});
wait_for_value($node, 'postgres',
	'SELECT status, error FROM outbox.message ORDER BY id', "CONFIRMED|\nFAILED|none left");

my %watched = map { split /\|/ } split /\n/, $node->safe_psql('postgres', <<'EOS');
SELECT kind, pid FROM outbox.worker
UNION ALL SELECT kind || '''s bridge', bridge_pid FROM outbox.worker WHERE bridge_pid > 0
EOS

is($node->safe_psql('postgres', 'SELECT sum(restarts + bridge_restarts) FROM outbox.worker'),
	0, 'none of them was too slow');
$node->safe_psql('postgres', 'DROP EXTENSION outbox CASCADE');
is(reap($server, 'INT', 60), 0, 'the server stops');

# ---------- what valgrind has to say ----------

is_deeply(
	[ sort keys %watched ],
	[ 'consumer', q(consumer's bridge), 'launcher', 'publisher', q(publisher's bridge) ],
	'all of them were there');
ok(-s "$dir/$watched{$_}.xml", "the $_ was watched") foreach (sort keys %watched);

my @errors;
my $others = 0;

foreach my $file (glob("$dir/*.xml"))
{
	# A bridge is killed, and doesn't finish its file.
	foreach my $error (slurp_file($file) =~ m{<error>(.*?)(?:</error>|\z)}gs)
	{
		if ($error =~ m{<obj>[^<]*/outbox(?:\.so|_bridge)</obj>})
		{
			push @errors, describe($error);
		}
		else
		{
			$others++;
		}
	}
}
is_deeply(\@errors, [], 'no error has a frame of ours');
note("$others errors of PostgreSQL and others");
done_testing();

# Its kind, and the functions from the innermost on
sub describe
{
	my ($error) = @_;
	my ($kind) = $error =~ m{<kind>(.*?)</kind>};
	my @frames;

	foreach my $frame ($error =~ m{<frame>(.*?)</frame>}gs)
	{
		my ($function) = $frame =~ m{<fn>(.*?)</fn>};
		my ($file) = $frame =~ m{<file>(.*?)</file>};
		my ($line) = $frame =~ m{<line>(.*?)</line>};

		push @frames, ($function // '?') . (defined $line ? " ($file:$line)" : '');
	}
	return "$kind in " . join(' < ', @frames);
}
