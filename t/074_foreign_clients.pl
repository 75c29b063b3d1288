# Clients that aren't ours play either side of the transaction: kcat, and
# Apache Kafka's own Java client.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run ();
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $example = "$FindBin::RealBin/../examples/order_inventory";
my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 4) foreach (qw(orders order-results));
$kafka->create_topic($_, 2) foreach (qw(questions answers));
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);

# Run a program to its end; returns what it writes.
sub run_program
{
	my ($input, @command) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(\@command, '<', \$input, '>', \$out, '2>', \$err, IPC::Run::timeout(120))
	  or die "$command[0]: $err";
	return $out;
}

sub kcat
{
	my ($input, @options) = @_;
	return run_program($input, 'kcat', '-q', '-b', $kafka->bootstrap, @options);
}

sub kcat_produce
{
	my ($topic, $value, @options) = @_;
	return kcat($value, '-P', '-t', $topic, @options);
}

# All that kcat hears on a topic, once there are so many: { key, value, header }
sub kcat_consume
{
	my ($topic, $n) = @_;
	my @records;

	# A header's value may hold any byte, a line's end too.
	my $end = '-- end of record';
	wait_until(
		"$n records on $topic",
		sub {
			@records = split /\Q$end\E/,
			  kcat('', '-C', '-e', '-o', 'beginning', '-t', $topic, '-f', "%K|%k|%s|%h$end");
			return @records >= $n;
		}) or return;
	return map {
		my ($key_length, $key, $value, $headers) = split /\|/, $_, 4;

		# of what kcat shows as a list, only ids are looked at
		{
			key => $key_length < 0 ? undef : $key,
			value => $value,
			header => { $headers =~ /\b(id|reply_to_message_id)=([0-9a-f-]{36})/g }
		}
	} @records;
}

my @ids = map { sprintf('00000000-0000-4000-8000-%012d', $_) } 1 .. 2;

subtest 'kcat orders' => sub {
	$node->safe_psql('postgres', 'CREATE DATABASE warehouse');
	$node->safe_psql('warehouse', slurp_file("$example/warehouse.sql"));
	$node->safe_psql('warehouse', 'INSERT INTO warehouse.stock VALUES (1, 10)');
	kcat_produce('orders', '{"orderId":1,"productId":1,"quantity":4}', '-k', 'Ada', '-H', "id=$ids[0]");
	kcat_produce('orders', '{"orderId":2,"productId":1,"quantity":7}', '-k', 'Ada', '-H', "id=$ids[1]");
	kcat_produce('orders', '{"orderId":3,"productId":1,"quantity":5}', '-k', 'Bob');
	kcat_produce('orders', '{"orderId":4,"productId":1,"quantity":1}');

	my $refusal =
	  '{"status": "FAILED", "error": "product 1 is out of stock", "sqlstate": "P0001"}';
	my @replies = kcat_consume('order-results', 4);
	my %by_key = map { $_->{key} // 'none' => $_ } @replies;

	is($by_key{ $ids[0] }{value}, 'SUCCESS', 'with an id: the reply has it as its key');
	is($by_key{ $ids[0] }{header}{reply_to_message_id}, $ids[0], 'and in a header');
	isnt($by_key{ $ids[0] }{header}{id}, $ids[0], 'and an id of its own');
	is($by_key{ $ids[1] }{value}, $refusal, 'a refusal says why');
	is($by_key{Bob}{value}, 'SUCCESS', 'without an id: the reply has the key of the order');
	is($by_key{Bob}{header}{reply_to_message_id}, undef, 'and no such header');
	is(scalar(grep { $_->{value} eq 'SUCCESS' } @replies), 3, 'without a key, either: there is a reply');

	kcat_produce('orders', '{"orderId":1,"productId":1,"quantity":4}', '-k', 'Ada', '-H', "id=$ids[0]");
	@replies = kcat_consume('order-results', 5);
	is_deeply([ map { $_->{value} } grep { $_->{key} eq $ids[0] } @replies ],
		[ 'SUCCESS', 'SUCCESS' ], 'an order that it repeats gets its reply again');
	is($node->safe_psql('warehouse', 'SELECT quantity FROM warehouse.stock'), '0',
		'and takes nothing again');
	is( $node->safe_psql('warehouse',
			'SELECT records_handled, records_failed, records_repeated, records_dead FROM outbox.stat'),
		'3|1|1|0', 'outbox.stat counts them');
	$node->safe_psql('warehouse', "SELECT outbox.unsubscribe('orders')");
};

subtest 'kcat is the inventory' => sub {
	$node->safe_psql('postgres', 'CREATE DATABASE shop');
	$node->safe_psql('shop', slurp_file("$example/shop.sql"));
	$node->safe_psql('shop', "INSERT INTO shop.account VALUES ('Ada', 1000)");
	my %order = map { $_ => $node->safe_psql('shop', "SELECT shop.place_order('Ada', $_, 1, 10 * $_)") }
	  1 .. 3;
	wait_for_value($node, 'shop',
		"SELECT count(*) FROM outbox.message WHERE status = 'SENT'", '3');

	my %key;    # of the order of a product
	foreach my $record (kcat_consume('orders', 8))
	{
		$key{$1} = $record->{key}
		  if $record->{value} =~ /^\{"orderId":\d+,"productId":(\d),"quantity":1\}$/
		  && ($record->{key} // '') eq ($record->{header}{id} // 'none');
	}
	is_deeply([ sort keys %key ], [ 1, 2, 3 ], 'it reads the orders, by the id in key and header');

	kcat_produce('order-results', 'SUCCESS', '-k', $key{1});
	kcat_produce('order-results', '{"status": "FAILED", "error": "sold out"}',
		'-k', 'mine', '-H', "reply_to_message_id=$key{2}");
	kcat_produce('order-results', '"FAILED"', '-H', "kafka_correlationId=$key{3}");
	wait_for_value($node, 'shop',
		"SELECT count(*) FROM shop.orders WHERE status = 'PLACED'", '0');

	my $state = "SELECT string_agg(product_id || status || coalesce(reason, ''), ' ' ORDER BY product_id)"
	  . ' FROM shop.orders';
	is($node->safe_psql('shop', $state), '1CONFIRMED 2CANCELLEDsold out 3CANCELLED',
		'what it answers confirms or cancels the order');
	is($node->safe_psql('shop', 'SELECT credit FROM shop.account'), '990', 'the credit is back');

	kcat_produce('order-results', 'SUCCESS', '-k', $key{1});
	kcat_produce('order-results', 'SUCCESS', '-k', $key{2});
	wait_for_value($node, 'shop',
		'SELECT results_applied, results_repeated, results_contrary FROM outbox.stat', '3|1|1');
	is($node->safe_psql('shop', $state), '1CONFIRMED 2CANCELLEDsold out 3CANCELLED',
		'saying it again, or the opposite, changes nothing');
};

subtest 'a Java client asks' => sub {
	$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION answer(record outbox.record) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('half', (record.payload::jsonb ->> 'n')::int / 2)
$$;
SELECT outbox.subscribe('questions', 'answer(outbox.record)', reply_topic => 'answers');
EOS
	# the handler is called in several transactions
	foreach my $n (1 .. 3)
	{
		kcat_produce('questions', qq({"n": $n}));
		kcat_consume('answers', $n);
	}
	my $out = run_program('', 'java', '-XX:TieredStopAtLevel=1', '-XX:-UsePerfData',
		'-Dorg.slf4j.simpleLogger.defaultLogLevel=warn',
		'-cp', "$ENV{OUTBOX_KAFKA_LIB}/*", "$FindBin::RealBin/../test/RequestReply.java",
		$kafka->bootstrap, 'questions', 'answers', '{"n": 4}', '{"n": "x"}', '{"n": 6}');
	is($out,
		qq({"n": 4}\t{"status": "SUCCESS", "result": {"half": 2}}\n)
		  . qq({"n": "x"}\t{"status": "FAILED", "error": "invalid input syntax for type integer: \\"x\\"", "sqlstate": "22P02"}\n)
		  . qq({"n": 6}\t{"status": "SUCCESS", "result": {"half": 3}}\n),
		'it gets each reply by its correlation id');
};

unlike(slurp_file($node->logfile), qr/was terminated by signal/, 'no process of the server crashed');
$node->stop;
$kafka->stop;
done_testing();
